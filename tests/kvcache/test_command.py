"""``tersor generate --kv`` from outside."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "tersor", "generate", *map(str, arguments)], capture_output=True, text=True, check=False)


def test_generate_with_a_compressed_cache_tells_its_bytes(stories_path: Path):
    done = run(stories_path, "Once upon a time " * 40, "--tokens", 5, "--kv", "kivi", "--kv-bits", 2, "--json")
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert made["text"]
    assert made["cache_bytes"] > 0
    assert made["compression_ratio"] > 1.5


def test_an_unknown_cache_is_refused_in_one_sentence(stories_path: Path):
    done = run(stories_path, "Once", "--kv", "zip")
    assert done.returncode == 2
    assert done.stderr.strip() == "tersor: unknown kind of cache 'zip'; there are gear, gear-l, gear-kcvt, kivi, kcvt, plain"
