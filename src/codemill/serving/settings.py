"""What a server is told at its start, and the check of it."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from codemill.core.errors import ConfigError

DEFAULT_PORT = 8012  # where llama.vim and llama.vscode look for a server unless told otherwise


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSettings:
    """Limits of the door. A sequence is one answer to one prompt: a request has `n` of them for each of its prompts."""

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT  # 0: any free one
    name: str = ""  # the model's name in the protocol; "" takes the checkpoint's
    api_key: str = ""  # "": none is asked for
    open_to_all: bool = False  # allow a host that others can reach without a key
    max_body_bytes: int = 4 << 20
    rate_per_minute: int = 1200  # requests of one client's address; 0: no limit
    max_sequences: int = 256  # running and waiting in all; more are told to come back
    max_request_sequences: int = 128  # of one request
    drain_seconds: float = 30.0  # for what runs when the server is told to stop
    stall_seconds: float = 60.0  # a client that takes or sends nothing for so long is dropped

    def __post_init__(self) -> None:
        for name in ("max_body_bytes", "max_sequences", "max_request_sequences", "stall_seconds"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name.replace('_', '-')} {getattr(self, name)} must be above 0")
        for name in ("rate_per_minute", "drain_seconds"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name.replace('_', '-')} {getattr(self, name)} must not be negative")
        if not 0 <= self.port < 65536:
            raise ConfigError(f"port {self.port} is not one of 0 to 65535")
        if self.api_key and (not self.api_key.isascii() or not self.api_key.isprintable() or " " in self.api_key):
            raise ConfigError("the API key may hold printable ASCII characters without spaces only")
        if not (self.is_loopback or self.api_key or self.open_to_all):
            raise ConfigError(
                f"host {self.host} can be reached by others: name a key's variable with --api-key-env, or say --open-to-all"
            )

    @property
    def is_loopback(self) -> bool:
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False
