"""The tests of object storage need an S3 server, and are left out where there is none."""

from remote_storage import MOTO_SERVER

if MOTO_SERVER is None:
    collect_ignore = ["test_push_and_mirror.py"]
