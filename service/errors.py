"""What can go wrong, in three families by who can put it right.

Every refusal is written here by us: what was given, what is allowed, how to find out. HTTP numbers
stand in `service.web.problems` alone.
"""

from typing import Any, ClassVar


class ConfigurationError(Exception):
    """The operator's settings do not let the program start; it never reaches a client."""


class ServiceError(Exception):
    """A refusal: a stable `code`, a `detail` for people, extensions for programs."""

    code: ClassVar[str]
    title: ClassVar[str]

    def __init__(self, detail: str, **extensions: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.extensions = extensions


class RequestError(ServiceError):
    """The caller can put it right by sending something else."""


class CapacityError(ServiceError):
    """The same request may succeed later."""


class ModelError(ServiceError):
    """The operator can put it right: a model does not load or does not run."""


class MalformedRequest(RequestError):
    code, title = "malformed-request", "The request cannot be parsed"


class Unauthenticated(RequestError):
    code, title = "unauthenticated", "A key is needed"


class Forbidden(RequestError):
    code, title = "forbidden", "This is not allowed here"


class RouteNotFound(RequestError):
    code, title = "not-found", "There is nothing at this address"


class MethodNotAllowed(RequestError):
    code, title = "method-not-allowed", "This address does not take this method"


class ModelNotFound(RequestError):
    code, title = "model-not-found", "No such model"


class VersionNotFound(RequestError):
    code, title = "version-not-found", "No such version of the model"


class LayerNotFound(RequestError):
    code, title = "layer-not-found", "No such layer"


class OutputNotFound(RequestError):
    code, title = "output-not-found", "The model has no such output or layer"


class NotAcceptable(RequestError):
    code, title = "not-acceptable", "No format that both sides accept"


class BodyTooLarge(RequestError):
    code, title = "body-too-large", "The body is too large"


class ImageTooLarge(RequestError):
    code, title = "image-too-large", "The image has too many pixels"


class TooManyImages(RequestError):
    code, title = "too-many-images", "Too many images in one request"


class AnswerTooLarge(RequestError):
    code, title = "answer-too-large", "The answer would be too large"


class UnsupportedBody(RequestError):
    code, title = "unsupported-media-type", "This kind of body is not supported"


class UnsupportedCoding(RequestError):
    code, title = "unsupported-content-encoding", "This content coding of the body is not supported"


class UnsupportedImage(RequestError):
    code, title = "unsupported-image-format", "This image format is not supported"


class ImageNotDecodable(RequestError):
    code, title = "image-not-decodable", "The image does not decode"


class InvalidParameter(RequestError):
    code, title = "invalid-parameter", "A parameter has a wrong type or value"


class ShapeMismatch(RequestError):
    code, title = "shape-mismatch", "The shape or dtype does not fit the model"


class NotCombinable(RequestError):
    code, title = "not-combinable", "These cannot be asked for together"


class NonFinite(RequestError):
    code, title = "non-finite", "The layer holds values that JSON cannot carry"


class OutOfRange(RequestError):
    code, title = "out-of-range", "The layer holds values that the dtype cannot carry"


class NameNotStorable(RequestError):
    code, title = "name-not-storable", "The format cannot carry this layer's name"


class ModelNeedsConstants(RequestError):
    code, title = "model-needs-constants", "The model has further inputs without constants"


class ImagesNotTaken(RequestError):
    code, title = "images-not-taken", "The model takes no images as they are"


class ImageNotFound(RequestError):
    code, title = "image-not-found", "No such image"


class NotDrawable(RequestError):
    code, title = "not-drawable", "This layer cannot be drawn in this way"


class VersionExists(RequestError):
    code, title = "version-exists", "The model has this version already"


class InvalidModel(RequestError):
    code, title = "invalid-model", "The model is not one that can be served"


class NoFilters(RequestError):
    code, title = "no-filters", "No convolution made this layer"


class RateLimited(CapacityError):
    code, title = "rate-limited", "This caller asks too often"


class RepositoryNotWritable(ModelError):
    code, title = "repository-not-writable", "Models cannot be written here"


class StoreUnavailable(CapacityError):
    code, title = "store-unavailable", "The store of images cannot be reached"


class Overloaded(CapacityError):
    code, title = "overloaded", "The service is full"


class NotReady(CapacityError):
    code, title = "not-ready", "The service or the model is still starting"


class DeadlineExceeded(CapacityError):
    code, title = "deadline-exceeded", "The deadline passed"


class ModelFailed(ModelError):
    """`at_run`: one that is loaded did not run; on other shapes than it serves that is the caller's doing."""

    code, title = "model-failed", "The model does not load or does not run"

    def __init__(self, detail: str, *, at_run: bool = False) -> None:
        super().__init__(detail)
        self.at_run = at_run
