"""Writes records through one node of a cluster, and reads the topic back through the same node.

Whoever leads a partition, the node forwards: nothing here looks for leaders.
"""

import sys

import grpc
from quorate.v1.common_pb2 import Record
from quorate.v1.consumer_pb2 import POSITION_EARLIEST, ConsumeRequest
from quorate.v1.consumer_pb2_grpc import ConsumerStub
from quorate.v1.producer_pb2 import ProduceRequest, RecordList
from quorate.v1.producer_pb2_grpc import ProducerStub

if len(sys.argv) != 4 or not sys.argv[3].isdigit():
    sys.exit(f"usage: {sys.argv[0]} HOST:PORT TOPIC COUNT")
node, topic, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
channel = grpc.insecure_channel(node)
producer, consumer = ProducerStub(channel), ConsumerStub(channel)
for number in range(count):
    record = Record(key=b"key-%d" % (number % 20), value=b"%d" % number)
    producer.Produce(ProduceRequest(topic=topic, records=RecordList(records=[record])))
everything = ConsumeRequest(topic=topic, position=POSITION_EARLIEST, until_end=True)
for response in consumer.Consume(everything):
    for record in response.records:
        print(response.partition, record.offset, record.key.decode(), record.value.decode())
