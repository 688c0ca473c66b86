"""Traces: which prompt a call, a span or a line of a log belongs to, across processes (W3C Trace Context).

It must not know what is traced. Spans are recorded and exported only where the standard OTEL_ variables ask for it; the
ids are made in any case, so that the logs at both ends of a call can be joined without a collector. Invariant: without
those variables a span costs two random numbers, and nothing that is traced waits or fails because of it.
"""

import os
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, ProxyTracerProvider, Span, SpanContext, SpanKind, TraceFlags
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from services.contracts.errors import UserError

_PROPAGATOR = TraceContextTextMapPropagator()
_HEADERS = frozenset(_PROPAGATOR.fields)
_NO_SPAN = Context()
_EXPORTERS = "opentelemetry_traces_exporter"
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


@contextmanager
def span(
    name: str,
    attributes: Mapping[str, str | int] | None = None,
    *,
    parent: Context | None = None,
    kind: SpanKind = SpanKind.INTERNAL,
) -> Iterator[Span]:
    """The current span within the block: below `parent`, or below the span that is current now."""
    tracer = trace.get_tracer("trireme")
    with tracer.start_as_current_span(name, context=parent, kind=kind, attributes=attributes) as started:
        if started.get_span_context().is_valid:
            yield started
            return
        with trace.use_span(NonRecordingSpan(_new_ids())) as unrecorded:
            yield unrecorded


def is_recorded() -> bool:
    """Whether somebody set up tracing in this process."""
    return not isinstance(trace.get_tracer_provider(), ProxyTracerProvider)


def outgoing() -> tuple[tuple[str, str], ...]:
    """The current span as gRPC metadata; empty where there is none."""
    headers: dict[str, str] = {}
    _PROPAGATOR.inject(headers)
    return tuple(headers.items())


def incoming(headers: Iterable[tuple[str, str | bytes]]) -> Context:
    """The caller's span, from the metadata of its call; no span where the caller sent none."""
    found = {key: value for key, value in headers if key in _HEADERS and isinstance(value, str)}
    return _PROPAGATOR.extract(found) if found else _NO_SPAN


def ids_in(context: Context | None = None) -> Mapping[str, str]:
    """`trace_id` and `span_id` of a context, or of the current one, in hexadecimal; empty where there is no span."""
    found = trace.get_current_span(context).get_span_context()
    if not found.is_valid:
        return {}
    return {"trace_id": f"{found.trace_id:032x}", "span_id": f"{found.span_id:016x}"}


def set_up_tracing(service: str) -> None:
    """Record and export spans if OTEL_TRACES_EXPORTER, or an OTLP endpoint, is set. For the start of a process.

    Args:
        service: name of the process in the traces, where OTEL_SERVICE_NAME does not say otherwise.

    Raises:
        UserError: the exporter is not installed.
    """
    default = "otlp" if any(map(os.environ.get, _ENDPOINTS)) else "none"
    names = [name.strip() for name in (os.environ.get("OTEL_TRACES_EXPORTER") or default).split(",")]
    if names == ["none"] or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or is_recorded():
        return
    _record(service, [_exporter(name) for name in names])


def _exporter(name: str) -> Any:  # Any: a class of whichever exporter there is
    found = metadata.entry_points(group=_EXPORTERS, name=name)
    if not found:
        raise UserError(
            f"OTEL_TRACES_EXPORTER asks for the exporter {name!r}, which is not installed: pip install "
            "'trireme-rlhf[tracing]', or set OTEL_TRACES_EXPORTER=none"
        )
    return next(iter(found)).load()


def _record(service: str, exporters: Sequence[Any]) -> None:  # Any: as above
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    named = os.environ.get("OTEL_SERVICE_NAME", service)
    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: named}))
    for exporter in exporters:
        provider.add_span_processor(BatchSpanProcessor(exporter()))
    trace.set_tracer_provider(provider)


def _new_ids() -> SpanContext:
    """A trace of its own, marked as sampled so that whoever is called and records spans records these."""
    return SpanContext(
        trace_id=secrets.randbits(128) or 1,
        span_id=secrets.randbits(64) or 1,
        is_remote=False,
        trace_flags=TraceFlags(TraceFlags.SAMPLED),
    )
