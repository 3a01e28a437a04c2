"""What a node tells without any file of the protocol: its services, by server reflection, and its
health. And what a refusal says in its google.rpc.ErrorInfo: the error's name in Kafka."""

import sys

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status

channel = grpc.insecure_channel(sys.argv[1])
reflection = ProtoReflectionDescriptorDatabase(channel)
for service in sorted(reflection.get_services()):
    print("service", service)

health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
print("health", health_pb2.HealthCheckResponse.ServingStatus.Name(health.status))

# A call that is made from what reflection told.
pool = DescriptorPool(reflection)
method = pool.FindServiceByName("quorate.v1.Producer").FindMethodByName("Produce")
produce = channel.unary_unary(
    "/quorate.v1.Producer/Produce",
    request_serializer=lambda message: message.SerializeToString(),
    response_deserializer=GetMessageClass(method.output_type).FromString,
)
request = GetMessageClass(method.input_type)(topic="nothing")
request.records.records.add(value=b"lost")
try:
    produce(request)
except grpc.RpcError as error:
    info = error_details_pb2.ErrorInfo()
    assert rpc_status.from_call(error).details[0].Unpack(info)
    print("refused", info.domain, info.reason)
