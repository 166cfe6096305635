"""The demos: the whole path from compression to the report, on the embedded model and on a real one."""
