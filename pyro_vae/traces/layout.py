"""Values of latents as (K, N, ...), and back to the shapes that their sites have.

Shapes: N data, K particles.
"""

from __future__ import annotations

from torch import Size, Tensor

from pyro_vae.traces.tracing import Site, Traces, frame_of, outside_plate


def by_draw(site: Site, value: Tensor, traces: Traces, plate: str) -> Tensor:
    """What has the shape of a site's value, as (K, N, ...): inner plates, then the event."""
    moved = _moved(site, value, traces, plate)
    data = data_dim(site, plate)
    inner = {frame.dim for frame in site["cond_indep_stack"] if frame.vectorized} - {data, traces.particle_dim}
    batch = site["fn"].batch_shape
    return moved.reshape(Size([*moved.shape[:2], *(batch[dim] for dim in sorted(inner)), *site["fn"].event_shape]))


def to_site(site: Site, rows: Tensor, traces: Traces, plate: str) -> Tensor:
    """The inverse of :func:`by_draw`; of rows (K, 1, ...), the same value for all data."""
    shape = site["value"].shape
    moved = _moved(site, site["value"], traces, plate).shape
    value = rows.reshape(Size([*rows.shape[:2], *moved[2:]]))
    data = data_dim(site, plate) - site["fn"].event_dim
    if traces.particle_dim is None:
        return value[0].movedim(0, data).expand(shape)
    return value.movedim((0, 1), (traces.particle_dim - site["fn"].event_dim, data)).expand(shape)


def for_each_draw(site: Site, value: Tensor) -> Tensor:
    """A value of a site that was run without particles, repeated for all of them."""
    shape = site["value"].shape
    return value.reshape((1,) * (len(shape) - value.dim()) + value.shape).expand(shape)


def of_data(site: Site, value: Tensor, index: Tensor, plate: str) -> Tensor:
    """A value of a site that was run without particles, at some of the data."""
    return value.index_select(data_dim(site, plate) - site["fn"].event_dim, index)


def _moved(site: Site, value: Tensor, traces: Traces, plate: str) -> Tensor:
    data = data_dim(site, plate) - site["fn"].event_dim
    if traces.particle_dim is None:
        return value.movedim(data, 0).unsqueeze(0)
    return value.movedim((traces.particle_dim - site["fn"].event_dim, data), (0, 1))


def data_dim(site: Site, plate: str) -> int:
    """The (negative) dim of the data in a site's batch shape."""
    frame = frame_of(site, plate)
    if frame is None:
        raise outside_plate(site["name"], plate)
    dim: int = frame.dim
    return dim
