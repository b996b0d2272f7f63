"""What long work needs: items made one ahead, in order, in one thread; how much memory is free; messages."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

import pytest

from bindkit import files
from bindkit.files import free_memory, one_ahead, show_messages


def test_items_come_in_order_one_ahead_from_a_single_thread() -> None:
    made, threads = [], set()

    def numbers():
        for number in range(5):
            made.append(number)
            threads.add(threading.current_thread().name)
            yield number

    used = []
    for number in one_ahead(numbers()):
        used.append(number)
        assert len(made) <= number + 2
    assert used == made == list(range(5))
    assert len(threads) == 1 and threading.current_thread().name not in threads
    assert list(one_ahead([])) == []


def test_an_error_of_the_thread_is_raised_where_its_item_was_wanted() -> None:
    items = one_ahead(1 / (2 - number) for number in range(5))
    assert [next(items), next(items)] == [0.5, 1.0]
    with pytest.raises(ZeroDivisionError):
        next(items)


def test_free_memory_is_that_of_the_machine_or_less_where_a_group_has_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {
        "/proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:    8000 kB\nBuffers: 1 kB\n",
        "/sys/fs/cgroup/memory.max": "max\n",
        "/sys/fs/cgroup/memory.current": "1000000\n",
    }
    for name, content in told.items():
        (tmp_path / name.rpartition("/")[2]).write_text(content)
    monkeypatch.setattr(files, "Path", lambda place: tmp_path if place.startswith("/sys") else tmp_path / "meminfo")
    assert free_memory() == 8000 * 1024
    (tmp_path / "memory.max").write_text("3000000\n")
    assert free_memory() == 2_000_000
    (tmp_path / "meminfo").unlink()
    assert free_memory() == 2 * 10**9


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="needs /proc/meminfo")
def test_free_memory_here_is_a_part_of_what_the_machine_has() -> None:
    assert 0 < free_memory() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_messages_are_short_and_warnings_said_once(monkeypatch, capsys) -> None:
    logger = logging.getLogger("bindkit")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "level", logger.level)
    show_messages()
    for _ in range(2):
        logger.info("writing %d scenes into %s", 3, Path("/home/me/cache/vit").absolute())
        logger.warning("%s is damaged", Path("/home/me/cache/vit").absolute())
    assert capsys.readouterr().err.splitlines() == [
        *("writing 3 scenes into …/vit", "/home/me/cache/vit is damaged", "writing 3 scenes into …/vit")
    ]
