"""OpenTelemetry traces: a span for each request, and one below it for each stretch of its work.

Only this module knows OpenTelemetry, which is an extra: it is imported where traces are asked for. Spans are
made when the request is over, from what was measured anyway. They carry no query, no bytes of images and no
values.
"""

from collections.abc import Iterator

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.datastructures import Headers

from service import __version__
from service.web.context import RequestContext

# A collector that does not answer must not hold up the end of the service for longer.
EXPORT_S = 5.0
NS = 1_000_000_000


class Traces:
    """Sends spans by OTLP over HTTP, in batches from a thread of its own; a full queue loses the newest.

    A parent's decision whether to sample is kept; for requests without one OTEL_TRACES_SAMPLER decides.
    """

    def __init__(self, endpoint: str) -> None:
        resource = Resource.create({SERVICE_NAME: "featuremaps", SERVICE_VERSION: __version__})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        exporter = OTLPSpanExporter(endpoint, timeout=EXPORT_S)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer: Tracer = self._provider.get_tracer("featuremaps", __version__)
        self._propagator = TraceContextTextMapPropagator()

    def tell(self, context: RequestContext) -> None:
        """Make the spans of a request that is over."""
        began_ns = int(context.began_at * NS)
        span = self._tracer.start_span(
            f"{context.method} {context.route}" if context.route else context.method,
            self._parent(context),
            SpanKind.SERVER,
            dict(_attributes(context)),
            start_time=began_ns,
        )
        if span.is_recording():
            below = set_span_in_context(span)
            for stretch in context.spans:
                start_ns = began_ns + int((stretch.start - context.start) * NS)
                child = self._tracer.start_span(stretch.stage, below, start_time=start_ns)
                child.end(start_ns + int(stretch.seconds * NS))
            if context.status >= 500:
                span.set_status(Status(StatusCode.ERROR))
        span.end(began_ns + int(context.seconds * NS))

    def close(self) -> None:
        """Send what is not sent yet."""
        self._provider.shutdown()

    def _parent(self, context: RequestContext) -> Context:
        """What the client's W3C traceparent says, if it sent a valid one."""
        headers = Headers(scope=context.scope)
        carrier = {name: headers[name] for name in ("traceparent", "tracestate") if name in headers}
        return self._propagator.extract(carrier)


def _attributes(context: RequestContext) -> Iterator[tuple[str, str | int]]:
    """By OpenTelemetry's names where it has some."""
    yield "http.request.method", context.method
    yield "http.response.status_code", context.status
    yield "http.request.body.size", context.received_bytes
    yield "http.response.body.size", context.sent_bytes
    yield "featuremaps.request_id", context.request_id
    for name, value in (
        ("http.route", context.route),
        ("error.type", context.code),
        ("featuremaps.model", context.model),
        ("featuremaps.left_while", context.left_while),
    ):
        if value is not None:
            yield name, value
