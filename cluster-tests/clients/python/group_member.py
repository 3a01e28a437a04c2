"""A group's member: group_member.py NODE[,NODE…] GROUP TOPIC… prints what falls to it."""

import itertools
import queue
import signal
import sys
import time

import grpc
from quorate.v1.groups_pb2 import SubscribeRequest
from quorate.v1.groups_pb2_grpc import GroupsStub

profile = {"topics": sys.argv[3:], "session_timeout_ms": 10_000}
join = {"group": sys.argv[2], "profile": profile, "start": "POSITION_EARLIEST", "auto_commit": True}
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *_: sys.exit())  # the end of the call is the member's leave
for node in itertools.cycle(sys.argv[1].split(",")):
    asks = queue.SimpleQueue()
    asks.put(SubscribeRequest(join=join))
    try:
        for told in GroupsStub(grpc.insecure_channel(node)).Subscribe(iter(asks.get, None)):
            for record in (batch := told.records.records).records:
                print(told.records.topic, batch.partition, record.offset, record.key, record.value)
            asks.put(SubscribeRequest(credit={"bytes": told.records.bytes}))
    except grpc.RpcError as error:
        if error.code().name not in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"):
            sys.exit(error.details())
    asks.put(None)
    time.sleep(0.2)
