"""Programs in each language that can be run: one that adds, and those that want too much."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from codemill.core.errors import UnavailableError
from codemill.core.paths import cache_dir
from codemill.sandbox.languages import LANGUAGES
from codemill.sandbox.toolchain import Toolchain, find_toolchain

ADD = {
    "python": "print(sum(map(int, input().split())))\n",
    "javascript": "const [a, b] = require('fs').readFileSync(0, 'utf8').split(' ').map(Number);\nconsole.log(a + b);\n",
    "typescript": "import * as fs from 'fs';\nenum Kind { Sum = 1 }\nconst add = (a: number, b: number): number => a + b;\n"
    "const [a, b]: number[] = fs.readFileSync(0, 'utf8').split(' ').map(Number);\n"
    "if (Kind.Sum) console.log(add(a, b));\n",
    "bash": "read -r a b\necho $((a + b))\n",
    "c": '#include <stdio.h>\nint main(void) { int a, b; scanf("%d%d", &a, &b); printf("%d\\n", a + b); return 0; }\n',
    "c++": "#include <iostream>\nint main() { int a, b; std::cin >> a >> b; std::cout << a + b << std::endl; }\n",
    "java": "import java.util.Scanner;\npublic class Sum {\n  public static void main(String[] words) {\n"
    "    Scanner in = new Scanner(System.in);\n    System.out.println(in.nextInt() + in.nextInt());\n  }\n}\n",
    "go": 'package main\n\nimport "fmt"\n\nfunc main() {\n\tvar a, b int\n\tfmt.Scan(&a, &b)\n\tfmt.Println(a + b)\n}\n',
    "rust": "fn main() {\n    let mut line = String::new();\n    std::io::stdin().read_line(&mut line).unwrap();\n"
    '    println!("{}", line.split_whitespace().map(|w| w.parse::<i64>().unwrap()).sum::<i64>());\n}\n',
}

BROKEN = {
    "python": "print(1\n",
    "javascript": "const = 1;\n",
    "typescript": "const a: = 1;\n",
    "bash": "if then fi (\n",
    "c": "int main(void) { return undeclared; }\n",
    "c++": "int main() { return undeclared; }\n",
    "java": "public class Main { public static void main(String[] a) { undeclared(); } }\n",
    "go": "package main\n\nfunc main() { undeclared() }\n",
    "rust": "fn main() { undeclared(); }\n",
}

HOG = {
    "python": "kept = []\nwhile True: kept.append(bytearray(b'x' * (1 << 20)))\n",
    "javascript": "const kept = [];\nwhile (true) kept.push(Buffer.alloc(1 << 20, 'x'));\n",
    "typescript": "const kept: number[][] = [];\nwhile (true) kept.push(new Array<number>(100000).fill(1.5));\n",
    "bash": 'kept=x\nwhile :; do kept="$kept$kept"; done\n',
    "c": "#include <stdlib.h>\n#include <string.h>\nint main(void) {\n  for (;;) {\n    char *p = malloc(1 << 20);\n"
    "    if (!p) abort();\n    memset(p, 1, 1 << 20);\n  }\n}\n",
    "c++": "#include <vector>\nint main() { std::vector<int> kept; for (;;) kept.push_back(1); }\n",
    "java": "import java.util.*;\nclass Hog {\n  public static void main(String[] words) {\n"
    "    List<byte[]> kept = new ArrayList<>();\n    while (true) kept.add(new byte[1 << 20]);\n  }\n}\n",
    "go": "package main\n\nfunc main() {\n\tvar kept [][]byte\n\tfor {\n\t\tblock := make([]byte, 1<<20)\n"
    "\t\tfor i := range block {\n\t\t\tblock[i] = 1\n\t\t}\n\t\tkept = append(kept, block)\n\t}\n}\n",
    "rust": "fn main() {\n    let mut kept = Vec::new();\n    loop {\n        kept.push(vec![1u8; 1 << 20]);\n    }\n}\n",
}

SPIN = {
    "python": "while True: pass\n",
    "javascript": "while (true);\n",
    "typescript": "while (true);\n",
    "bash": "while :; do :; done\n",
    "c": "int main(void) { for (volatile int i = 0;; i++); }\n",
    "c++": "int main() { for (volatile int i = 0;; i = i + 1); }\n",
    "java": "class Main { public static void main(String[] a) { while (true); } }\n",
    "go": "package main\n\nfunc main() {\n\tfor {\n\t}\n}\n",
    "rust": "fn main() {\n    loop {}\n}\n",
}

# Each starts as many processes or threads as it gets, and prints how many before it waits.
STORM = {
    "python": "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n",
    "javascript": "const { spawn } = require('child_process');\n"
    "setInterval(() => { for (let i = 0; i < 20; i++) spawn('sleep', ['60']).on('error', () => {}); }, 1);\n",
    "typescript": "const { spawn } = require('child_process');\n"
    "setInterval(() => { for (let i = 0; i < 20; i++) spawn('sleep', ['60']).on('error', () => {}); }, 1);\n",
    "bash": "while :; do sleep 60 & done 2>/dev/null\n",
    "c": "#include <unistd.h>\nint main(void) { for (;;) fork(); }\n",
    "c++": "#include <unistd.h>\nint main() { for (;;) fork(); }\n",
    "java": "class Main {\n  public static void main(String[] a) {\n    while (true) {\n      new Thread(() -> {\n"
    "        try { Thread.sleep(60000); } catch (InterruptedException e) { }\n      }).start();\n    }\n  }\n}\n",
    "go": 'package main\n\nimport "os/exec"\n\nfunc main() {\n\tfor {\n\t\texec.Command("sleep", "60").Start()\n\t}\n}\n',
    "rust": "use std::{thread, time::Duration};\nfn main() {\n    loop {\n"
    "        let _ = thread::Builder::new().spawn(|| thread::sleep(Duration::from_secs(60)));\n    }\n}\n",
}


def toolchain_or_skip(name: str) -> Toolchain:
    try:
        return find_toolchain(name)
    except UnavailableError as error:
        pytest.skip(str(error))


def share_go_library(cache: Path) -> None:
    """Let a test's own cache use the Go library compiled in the user's: that takes up to a minute."""
    library = cache_dir() / "go"
    library.mkdir(exist_ok=True)
    if not os.path.lexists(cache / "go"):
        (cache / "go").symlink_to(library)


assert all(set(programs) == set(LANGUAGES) for programs in (ADD, BROKEN, HOG, SPIN, STORM))
