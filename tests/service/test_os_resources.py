"""CPU quotas and thread priorities. Memory limits: `worker/test_loading.py`."""

import os
import sys
import threading

import pytest

from service import os_resources


def test_available_cores(tmp_path, monkeypatch):
    """A cgroup's CPU quota limits the cores, in either version of cgroups."""
    v1 = ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")
    cases = [
        ({}, 64),
        ({"cpu.max": "max 100000"}, 64),
        ({"cpu.max": "150000 100000"}, 2),
        (dict(zip(v1, ("-1", "100000"), strict=True)), 64),
        (dict(zip(v1, ("400000", "100000"), strict=True)), 4),
    ]
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(64))
    for number, (files, cores) in enumerate(cases):
        monkeypatch.setattr(os_resources, "CGROUP", tmp_path / str(number))
        for name, text in files.items():
            path = tmp_path / str(number) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")
        assert os_resources.available_cores() == cores, files


@pytest.mark.skipif(sys.platform != "linux", reason="threads share a priority")
def test_lower_thread_priority():
    """Only the calling thread's priority is lowered."""
    priorities = {}

    def record(name, prepare):
        prepare()
        thread = threading.get_native_id()
        priorities[name] = os.getpriority(os.PRIO_PROCESS, thread)

    cases = {"lowered": os_resources.lower_thread_priority, "other": lambda: None}
    for name, prepare in cases.items():
        thread = threading.Thread(target=record, args=(name, prepare))
        thread.start()
        thread.join()
    normal = os.getpriority(os.PRIO_PROCESS, 0)
    assert priorities == {"lowered": os_resources.LOWEST_PRIORITY, "other": normal}
