"""A reward service written from the .proto alone, as one in any other language would be.

    pip install grpcio-tools grpcio-health-checking
    python examples/rewards/from_proto.py [PORT]
    trireme reward check 127.0.0.1:50051

It imports nothing of Trireme: the stubs are made from `reward.proto` when it starts. It scores how many of the words of
`reference.keywords` a completion has.
"""

import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

sys.path.insert(0, str(Path(__file__).parents[2] / "services" / "protos"))
messages, services = grpc.protos_and_services("reward/v1/reward.proto")

MAX_SAMPLES = 1024
DRAIN_S = 10.0


class KeywordReward(services.RewardServiceServicer):
    def Describe(self, request, context):  # noqa: N802 - named by the contract
        return messages.DescribeResponse(
            name="keywords", version="1", minimum=0.0, maximum=1.0, max_batch_samples=MAX_SAMPLES
        )

    def Score(self, request, context):  # noqa: N802 - named by the contract
        num_ids = len({sample.id for sample in request.samples})
        if len(request.samples) > MAX_SAMPLES or num_ids < len(request.samples):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"more than {MAX_SAMPLES} samples, or two with one id")
        results = [self._result(sample) for sample in request.samples]
        return messages.ScoreResponse(request_id=request.request_id, results=results)

    def _result(self, sample):
        keywords = [value.string_value for value in sample.reference.fields["keywords"].list_value.values]
        if not keywords:
            failure = messages.Failure(
                code=messages.FAILURE_CODE_INVALID_SAMPLE, message="reference.keywords is missing or empty"
            )
            return messages.Result(sample_id=sample.id, failure=failure)
        found = [keyword for keyword in keywords if keyword in sample.completion]
        return messages.Result(sample_id=sample.id, reward=messages.Reward(value=len(found) / len(keywords)))


def main(port: int) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    server = grpc.server(ThreadPoolExecutor(max_workers=4))
    services.add_RewardServiceServicer_to_server(KeywordReward(), server)
    health_servicer = health.HealthServicer()
    health_servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    print(f"reward server listening on 127.0.0.1:{port}", flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    health_servicer.enter_graceful_shutdown()
    server.stop(DRAIN_S).wait()  # Turns new calls away, and lets those under way end.


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 50051)
