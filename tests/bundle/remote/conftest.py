"""The tests of object storage need an S3 server, some also hosts of their own; else they are left out."""

from network_hosts import why_none
from remote_storage import MOTO_SERVER

if MOTO_SERVER is None:
    collect_ignore = ["test_push_and_mirror.py", "test_separate_hosts.py"]
elif why_none() is not None:
    collect_ignore = ["test_separate_hosts.py"]
