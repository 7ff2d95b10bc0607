"""Who holds which block of the key-value cache, and which blocks can be used again for the same beginning of a text.

Full blocks stand in a tree: a block's key is its parent block and the tokens in it, so that equal beginnings lead to equal
blocks, compared token by token and never by a hash alone. A block is counted by the sequences that use it; one that nobody
uses stays in the tree until its memory is needed, the least recently used first ("RadixAttention", arXiv 2312.07104, in
steps of whole blocks as in "PagedAttention", arXiv 2309.06180).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

NULL_BLOCK = 0  # never given out, so it stays zero: what block tables hold behind a sequence's last block
_ROOT = 0


class BlockPool:
    """Numbers of blocks, 1 to `blocks` - 1, of `block_tokens` tokens each. Holds no tensors.

    A block is free, in use (counted), or idle: used by nobody and kept in the tree.
    """

    def __init__(self, blocks: int, block_tokens: int) -> None:
        self.blocks, self.block_tokens = blocks, block_tokens
        self._free = list(range(blocks - 1, NULL_BLOCK, -1))
        self._uses = [0] * blocks
        self._tree: dict[tuple[int, tuple[int, ...]], int] = {}  # (parent's node, tokens) -> block
        self._keys: list[tuple[int, tuple[int, ...]] | None] = [None] * blocks
        # A node is a block's stay in the tree, numbered for ever: a block that comes back is another node.
        self._nodes = [_ROOT] * blocks
        self._next_node = _ROOT + 1
        # Blocks enter when their last user leaves, children before parents, so the oldest is never a parent of another.
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def usable(self) -> int:
        """All blocks that can be given out."""
        return self.blocks - 1

    @property
    def available(self) -> int:
        """Blocks that `allocate` can give now."""
        return len(self._free) + len(self._idle)

    @property
    def idle(self) -> int:
        """Blocks kept for reuse only."""
        return len(self._idle)

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_tokens)

    def uses(self, block: int) -> int:
        """How many sequences use a block."""
        return self._uses[block]

    def allocate(self) -> int:
        """A block of undefined content, used once; the caller has looked at `available`."""
        if self._free:
            block = self._free.pop()
        else:
            block, _ = self._idle.popitem(last=False)
            self._leave_tree(block)
        self._uses[block] = 1
        return block

    def share(self, blocks: Sequence[int]) -> None:
        """Count one more user of each."""
        for block in blocks:
            if self._uses[block] == 0:
                del self._idle[block]
            self._uses[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """Count one user less; a block without any becomes idle if it is in the tree, else free."""
        for block in reversed(blocks):
            self._uses[block] -= 1
            if self._uses[block] == 0:
                if self._keys[block] is None:
                    self._free.append(block)
                else:
                    self._idle[block] = None

    def match(self, tokens: Sequence[int], most: int) -> list[int]:
        """The blocks of the longest known beginning of `tokens`, at most `most` tokens long. Not yet shared."""
        size, node, found = self.block_tokens, _ROOT, []
        for start in range(0, most - size + 1, size):
            block = self._tree.get((node, tuple(tokens[start : start + size])))
            if block is None:
                break
            found.append(block)
            node = self._nodes[block]
        return found

    def reclaimable(self, blocks: Sequence[int]) -> int:
        """How many of `blocks` are idle: sharing them takes so many from `available`."""
        return sum(self._uses[block] == 0 for block in blocks)

    def keep(self, parent: int | None, block: int, tokens: Sequence[int]) -> int:
        """Put a full block in use into the tree, behind its parent (None at the start of a text).

        Returns the block to use from now on: another one if the tree holds the same tokens already; the given one is
        then released.
        """
        node = _ROOT if parent is None else self._nodes[parent]
        if parent is not None and node == _ROOT:  # the parent was dropped, so this one could never be found
            return block
        key = (node, tuple(tokens))
        known = self._tree.get(key)
        if known is not None:
            if known != block:
                self.share((known,))
                self.release((block,))
            return known
        self._tree[key], self._keys[block] = block, key
        self._nodes[block] = self._next_node
        self._next_node += 1
        return block

    def drop(self, blocks: Sequence[int]) -> None:
        """Take blocks out of the tree, for instance because their content is broken; what hangs below is not found again."""
        for block in blocks:
            if self._keys[block] is not None:
                self._leave_tree(block)
            if block in self._idle:
                del self._idle[block]
                self._free.append(block)

    def reset(self) -> None:
        """Forget everything that is kept for reuse."""
        self.drop([block for block in range(self.blocks) if self._keys[block] is not None])

    def _leave_tree(self, block: int) -> None:
        key = self._keys[block]
        if key is not None:
            del self._tree[key]
        self._keys[block], self._nodes[block] = None, _ROOT
