"""What a run will need: features in memory and on disk, and its largest layer."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bitsplit.calibration.schedule import Schedule
from bitsplit.data import Batches
from bitsplit.errors import CalibrationError
from bitsplit.methods.base import Method
from bitsplit.network import Network
from bitsplit.network.record import Record
from bitsplit.plan import Plan


@dataclass(frozen=True)
class Forecast:
    """Bytes: features of both models at the worst moment, those that will lie on the card and on disk, and
    what fitting takes that layer which takes most."""

    features: int
    on_card: int
    on_disk: int
    fitting: int
    layer: str

    def __str__(self) -> str:
        gib = 2**30
        in_memory = self.features - self.on_card - self.on_disk
        text = f"features: {in_memory / gib:.2f} GiB in memory, {self.on_disk / gib:.2f} GiB on disk"
        if self.on_card:
            text += f", {self.on_card / gib:.2f} GiB on the card"
        return f"{text}; largest layer: {self.fitting / gib:.2f} GiB ({self.layer})" if self.layer else text

    def check(self, free: int) -> None:
        """``CalibrationError`` when the largest layer does not fit into ``free`` bytes."""
        if self.fitting > free:
            raise CalibrationError(
                f"{self.layer}: fitting it takes about {self.fitting / 2**30:.1f} GiB of memory, "
                f"{free / 2**30:.1f} GiB are free; leave it float with "
                f'layers={{"{self.layer}": {{"weights": None}}}} or choose a method without second moments '
                "(minmax, mse, nearest)"
            )


def forecast(
    network: Network, plan: Plan, methods: list[Method], features: int, card: int, budget: int
) -> Forecast:
    """What a run will need: ``features`` bytes of feature maps, of which ``card`` have room on the card and
    ``budget`` may be kept in memory."""
    sizes: dict[str, int] = {}
    for name, layer in network.layers.items():
        if plan.layer(name).weights is not None:
            groups, _, columns = layer.kind.matrix(layer.module, layer.module.weight).shape
            sizes[name] = max((method.memory(layer.kind, groups, columns) for method in methods), default=0)
    largest = max(sizes, key=sizes.__getitem__, default="")
    on_card = min(features, card)
    on_disk = max(0, features - on_card - budget)
    return Forecast(features, on_card, on_disk, sizes.get(largest, 0), largest)


def kept_bytes(network: Network, schedule: Schedule, methods: list[Method], data: Batches) -> int:
    """Of everything that the store of a run over ``data`` holds at the worst moment."""
    features, selected = feature_bytes(network, schedule, data), selection_bytes(network)
    whole = features + selected * data.images // network.record.batch_size
    return whole + row_bytes(network, methods, data) + response_bytes(network, methods, data)


def row_bytes(network: Network, methods: list[Method], data: Batches) -> int:
    """Of the rows of that piece which has most, while a method learns it."""
    # blocks stand for stages too: the first of a stage is called with what the stage is called with
    units = {unit.name for unit in network.units}
    pieces = {"layer": set(network.layers), "net": {""}}
    most = max(
        _most_kept(network.record, pieces.get(method.granularity, units), *method.kept_rows)
        for method in methods
    )
    return element_bytes(network) * most * data.images // network.record.batch_size


def response_bytes(network: Network, methods: list[Method], data: Batches) -> int:
    """Of what the float network gives, where methods compare with that."""
    record = network.record
    images = min(data.images, max(method.asked_images for method in methods))
    outputs = sum(math.prod(record.values[value].shape) for value in record.outputs)
    return element_bytes(network) * outputs * images // record.batch_size


def element_bytes(network: Network) -> int:
    """Of a number that the network computes with."""
    return max(layer.module.weight.element_size() for layer in network.layers.values())


def _most_kept(record: Record, names: set[str], inputs: int, outputs: int) -> int:
    """Elements of that module among ``names`` of which most is kept: all its calls, each so many times."""
    sizes = dict.fromkeys(names, 0)
    for call in record.calls:
        if call.name in names:
            for count, values in ((inputs, call.inputs), (outputs, call.outputs)):
                sizes[call.name] += count * sum(math.prod(record.values[value].shape) for value in values)
    return max(sizes.values(), default=0)


def feature_bytes(network: Network, schedule: Schedule, data: Batches) -> int:
    """Of both models at the worst moment of a run over ``data``, from the sizes of the observed forward."""
    per_size = 2 * element_bytes(network) * data.images / network.record.batch_size
    live = worst = 0.0
    for position, size in enumerate(schedule.output_size):
        live += per_size * size
        worst = max(worst, live)
        live -= sum(
            per_size * schedule.output_size[index]
            for index, last in enumerate(schedule.last_reader)
            if last == position
        )
    return int(worst)


def selection_bytes(network: Network) -> int:
    """Of what the observed forward selected by values."""
    return sum(math.prod(value.shape) * value.dtype.itemsize for value in network.selected)
