"""Any module that gives logits, with the face of our networks: hooks read features and maps inside it."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from python_trainers.common.errors import TrainerError, require
from python_trainers.common.models.names import kind
from python_trainers.common.models.network import Classifier, ImageShape
from python_trainers.common.models.trial import check_logits, few_images, trial
from python_trainers.common.names import listing

LISTED = 30  # names of submodules in an error message at most


class Tapped(Classifier):
    """``module``, a classifier of any origin, as a :class:`Classifier`.

    ``features`` names the submodule whose output is the features: [N, D], or [N, C, H, W], which is averaged
    over its positions. Of the submodule that makes the logits it is the input. Without a name the features
    are what the module's own ``with_features`` returns, else the input of the linear layer or convolution
    whose output is the logits; timm's and torchvision's networks have one.

    ``stages`` names the submodules whose outputs are the maps. Without names the maps are what the module's
    own ``stages`` or timm's ``forward_intermediates`` returns.

    :meth:`locate` finds the features, at the latest at the first call; it must come before the module is
    compiled. A hook keeps what a submodule gave in its last call, with what later layers wrote into that in
    place. Names that the module does not have raise ``TrainerError``.
    """

    def __init__(self, module: nn.Module, *, features: str | None = None, stages: Sequence[str] = ()) -> None:
        super().__init__()
        self.module = module
        known = {None, *_submodules(module)}
        for name in (features, *stages):
            require(
                name in known, f"{self._kind} has no submodule {name!r}; there is: {self._listing(str(name))}"
            )
        self._features_name = features
        self._features: _Tap | None = None
        self._stages = [_Tap(module, name) for name in stages]
        self._sizes: tuple[int, int | None] | None = None  # classes and width of the features, once located

    @property
    def classes(self) -> int:
        return self._located()[0]

    @property
    def num_features(self) -> int:
        width = self._located()[1]
        if width is None:
            raise TrainerError(
                f"no linear layer or convolution of {self._kind} gives its logits, so say where its features "
                f"are: Tapped(module, features=NAME); there is: {self._listing()}"
            )
        return width

    def locate(self, images: Tensor) -> "Tapped":
        """Find the features, once, by a forward of ``images`` in evaluation mode that leaves no trace."""
        if self._sizes is not None:
            return self
        with trial(self.module):
            if self._features_name is None and self._has_own("with_features"):
                features, logits = self.module.with_features(images)
            else:
                logits, calls = self._watch(images)
                # Of all layers whose output is the logits the last; of a submodule by name whatever it is.
                made = [name for name, (_, output) in calls.items() if _same_memory(output, logits)]
                name = self._features_name or (made[-1] if made else None)
                features = None
                if name is not None:
                    self._features = _Tap(self.module, name, takes_input=name in made)
                    features = _averaged(calls[name][0 if name in made else 1], f"{name!r} of {self._kind}")
        self._sizes = logits.shape[1], None if features is None else features.shape[1]
        return self

    def forward(self, images: Tensor) -> Tensor:
        return self.module(images)

    def with_features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        self.locate(images)
        if self._features is not None:
            logits, (features,) = self._read([self._features], images)
            return _averaged(features, f"{self._features.name!r} of {self._kind}"), logits
        _ = self.num_features  # raises where there are none
        return self.module.with_features(images)

    def stages(self, images: Tensor) -> list[Tensor]:
        if self._stages:
            _, maps = self._read(self._stages, images)
        elif self._has_own("stages"):
            maps = self.module.stages(images)
        elif self._has_own("forward_intermediates"):
            maps = self.module.forward_intermediates(images, intermediates_only=True)
        else:
            raise TrainerError(
                f"say where the maps of {self._kind} are: Tapped(module, stages=NAMES); there is: "
                f"{self._listing()}"
            )
        for index, map_ in enumerate(maps):
            require(
                isinstance(map_, Tensor) and map_.ndim == 4,
                f"stage {index} of {self._kind} must be a map [N, C, H, W], got {_shape(map_)}; "
                "name other submodules",
            )
        return list(maps)

    @property
    def _kind(self) -> str:
        return kind(self)

    def _located(self) -> tuple[int, int | None]:
        require(
            self._sizes is not None, f"Tapped({self._kind}) has seen no images yet: call locate(images) first"
        )
        return self._sizes

    def _has_own(self, method: str) -> bool:
        """Whether the module's class has it: timm keeps submodules under names such as ``stages``."""
        return callable(getattr(type(self.module), method, None))

    def _listing(self, name: str = "") -> str:
        return listing(name, _submodules(self.module), limit=LISTED)

    def _watch(self, images: Tensor) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
        """Logits, and input and output of the submodules that may give the features, in the order of calls."""
        calls: dict[str, tuple[Tensor, Tensor]] = {}
        watched = _submodules(self.module)
        if self._features_name is None:
            watched = {name: m for name, m in watched.items() if isinstance(m, (nn.Linear, nn.Conv2d))}
        else:
            watched = {self._features_name: watched[self._features_name]}

        def watch(name: str, submodule: nn.Module) -> Any:
            def keep(_: nn.Module, inputs: tuple, keywords: dict[str, Any], output: Tensor) -> None:
                calls.pop(name, None)
                calls[name] = _first(inputs, keywords), output

            return submodule.register_forward_hook(keep, with_kwargs=True)

        handles = [watch(name, submodule) for name, submodule in watched.items()]
        try:
            logits = self.module(images)
        finally:
            for handle in handles:
                handle.remove()
        missed = self._features_name if self._features_name not in calls else None
        require(missed is None, f"{self._kind} does not call its submodule {missed!r} on the way to the logits")
        return logits, calls

    def _read(self, taps: list["_Tap"], images: Tensor) -> tuple[Tensor, list[Any]]:
        """Logits and what the taps gave, of one forward."""
        for tap in taps:
            tap.is_open = True
        try:
            logits = self.module(images)
        finally:
            for tap in taps:
                tap.is_open = False
        return logits, [tap.take(self._kind) for tap in taps]


class _Tap:
    """A hook on a submodule that keeps its input or output while open; copied together with the module."""

    def __init__(self, module: nn.Module, name: str, *, takes_input: bool = False) -> None:
        self.name = name
        self.is_open = False
        self._takes_input = takes_input
        self._kept: Any = None
        module.get_submodule(name).register_forward_hook(self, with_kwargs=True)

    def __call__(self, _: nn.Module, inputs: tuple, keywords: dict[str, Any], output: Any) -> None:
        if self.is_open:
            self._kept = _first(inputs, keywords) if self._takes_input else output

    def take(self, owner: str) -> Any:
        kept, self._kept = self._kept, None
        require(kept is not None, f"{owner} does not call its submodule {self.name!r} on the way to the logits")
        return kept


def as_classifier(module: nn.Module, image_shape: ImageShape, classes: int, who: str) -> Classifier:
    """``module`` as a :class:`Classifier` of images of ``image_shape``, a :class:`Tapped` unless it is one.

    Refuses in the name of ``who`` ("student", "teacher") what gives no logits [N, classes]. Neither the module
    nor torch's generators notice the trial. It may have no features to read: asking for them then raises.
    """
    check_logits(module, image_shape, classes, who)
    if isinstance(module, Classifier) and not isinstance(module, Tapped):
        return module
    tapped = module if isinstance(module, Tapped) else Tapped(module)
    return tapped.locate(few_images(tapped, image_shape))


def _submodules(module: nn.Module) -> dict[str, nn.Module]:
    """All by name; a shared one under each of its names."""
    return {name: m for name, m in module.named_modules(remove_duplicate=False) if name}


def _first(inputs: tuple, keywords: dict[str, Any]) -> Any:
    return next(iter((*inputs, *keywords.values())), None)


def _same_memory(output: Any, logits: Tensor) -> bool:
    """Whether ``output`` is the logits, however shaped."""
    return (
        isinstance(output, Tensor)
        and output.numel() == logits.numel()
        and output.untyped_storage().data_ptr() == logits.untyped_storage().data_ptr()
    )


def _averaged(features: Any, source: str) -> Tensor:
    """[N, D] as it is, [N, C, H, W] averaged over its positions."""
    if isinstance(features, Tensor) and features.ndim == 4:
        return features.mean((2, 3))
    require(
        isinstance(features, Tensor) and features.ndim == 2,
        f"features must be [N, D] or [N, C, H, W], {source} gives {_shape(features)}; name another submodule",
    )
    return features


def _shape(value: Any) -> str:
    return str(list(value.shape)) if isinstance(value, Tensor) else type(value).__name__
