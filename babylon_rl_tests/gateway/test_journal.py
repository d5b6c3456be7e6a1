"""Lines of a journal are there after a SIGKILL, each once, and only a dead process's are taken over."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from babylon_rl.gateway.journal import Journal

WRITE_FOR_EVER = """
import sys
from pathlib import Path
from babylon_rl.gateway.journal import Journal
journal = Journal(Path(sys.argv[1]), segment_bytes=2_000)
for i in range(10**9):
    journal.append(b"%d" % i + b"x" * 100)
    print(i, flush=True)
"""


def read_all(journal: Journal, most_lines: int = 7, most_bytes: int = 300) -> list[bytes]:
    lines: list[bytes] = []
    while (found := journal.read(most_lines=most_lines, most_bytes=most_bytes)) is not None:
        lines += found.lines
        journal.forget(found)
    return lines


def test_lines_are_read_in_order_and_their_files_go(tmp_path: Path) -> None:
    journal = Journal(tmp_path, segment_bytes=500)
    lines = [b"%d" % i * 40 for i in range(50)] + [b"long" * 1_000, b"last"]
    for line in lines:
        journal.append(line)
    assert len(list(tmp_path.iterdir())) > 3
    assert read_all(journal) == lines
    journal.close()
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_forgotten_is_left_for_the_next_process(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for line in (b"a", b"b", b"c"):
        journal.append(line)
    first = journal.read(most_lines=1, most_bytes=100)
    assert first is not None
    journal.forget(first)

    other = Journal(tmp_path)
    assert other.adopt() == 0, "its process lives"
    journal.close()
    assert other.adopt() == 3, "what was forgotten may come again, and nothing is missing"
    assert read_all(other) == [b"a", b"b", b"c"]
    assert list(tmp_path.iterdir()) == []


def test_a_killed_process_leaves_every_whole_line(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", WRITE_FOR_EVER, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for _ in range(300):
            process.stdout.readline()
        os.kill(process.pid, signal.SIGKILL)
        said = 300 + len(process.stdout.read().split())
    torn = max(tmp_path.glob("*.jsonl"), key=lambda p: p.stat().st_mtime)
    with torn.open("ab") as file:
        file.write(b"half a li")  # as a kill inside of write() leaves it

    journal = Journal(tmp_path)
    adopted = journal.adopt()
    lines = read_all(journal)
    assert len(lines) == adopted
    assert adopted - said in (0, 1), "one was appended and not said"
    assert sorted(int(line.rstrip(b"x")) for line in lines) == list(range(adopted))
    assert list(tmp_path.glob("*.jsonl")) == []


def test_a_journal_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"Not a directory|File exists"):
        Journal(tmp_path / "file").append(b"a")
