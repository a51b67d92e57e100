"""How many live streams a server keeps up with, ours beside a naive one."""
