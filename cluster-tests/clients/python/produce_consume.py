"""Writes keyed records through one node of a cluster, and reads them back through the same node.

Whoever leads a partition, the node forwards: nothing here looks for leaders. `Fetch` gives record
batches in Kafka's format; a Kafka library takes them apart (and checks their CRC).
"""

import sys

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from kafka.record import MemoryRecords
from quorate.v1.common_pb2 import Record
from quorate.v1.consumer_pb2 import FetchRequest
from quorate.v1.consumer_pb2_grpc import ConsumerStub
from quorate.v1.producer_pb2 import ProduceRequest, RecordList
from quorate.v1.producer_pb2_grpc import ProducerStub


def produce(channel, topic, count):
    """Gives where the records are: (partition, offset)."""
    producer = ProducerStub(channel)
    for number in range(count):
        record = Record(key=b"key-%d" % (number % 20), value=b"%d" % number)
        answer = producer.Produce(ProduceRequest(topic=topic, records=RecordList(records=[record])))
        yield answer.partition, answer.base_offset


def consume(channel, topic, partition, offset, end):
    """Gives the records of a partition from `offset` up to `end`."""
    consumer = ConsumerStub(channel)
    while offset < end:
        request = FetchRequest(topic=topic, partition=partition, offset=offset, min_bytes=1, max_wait_ms=500)
        for batch in MemoryRecords(consumer.Fetch(request).batches):
            assert batch.validate_crc(), f"a damaged batch at {partition}/{offset}"
            for record in batch:
                if offset <= record.offset < end:  # a batch may begin before what was asked for
                    yield record
                    offset = record.offset + 1


def reason(error):
    """What a refusal says in its google.rpc.ErrorInfo: the code by Kafka's name."""
    for detail in (rpc_status.from_call(error) or rpc_status.status_pb2.Status()).details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            return info.reason
    return error.code().name


def main(node, topic, count="100"):
    with grpc.insecure_channel(node) as channel:
        written = list(produce(channel, topic, int(count)))
        for partition in sorted({partition for partition, _ in written}):
            offsets = [offset for place, offset in written if place == partition]
            for record in consume(channel, topic, partition, min(offsets), max(offsets) + 1):
                print(partition, record.offset, record.key.decode(), record.value.decode())


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except grpc.RpcError as error:
        sys.exit(f"{reason(error)}: {error.details()}")
