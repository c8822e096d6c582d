"""Where arrays live and how a step is mapped over devices; models and losses know nothing of it.

Two wirings of one train step: `jit_step` over a mesh (the default; the towers and the loss are
`shard_map` islands made by `on_own_rows` and `per_shard`, parameters are replicated or sharded by
rules) and `pmap_step`.
"""

from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vlrep_jax.collectives import first_row, gather_parts
from vlrep_jax.rules import match_rules

BATCH_AXES = ("data", "fsdp")  # every mesh axis splits the batch; 'fsdp' may split parameters too


def make_mesh(
    data: int = -1,
    fsdp: int = 1,
    devices: Sequence[jax.Device] | None = None,
    *,
    slices: int = 0,
) -> Mesh:
    """A mesh of all devices with axes ('data', 'fsdp'); a size of -1 takes the devices left over.

    With several slices 'data' crosses them and 'fsdp' stays inside one: the network between slices
    carries one sum of gradients a step, and parameters are gathered over the links of a slice.

    Args:
      slices: into how many the devices fall; 0 is as many as TPUs say they are.

    Raises:
      ValueError: the sizes do not multiply to the number of devices, or do not fit the slices.
    """
    devices = list(devices if devices is not None else jax.devices())
    count, sizes = len(devices), [data, fsdp]
    if sizes.count(-1) == 1 and max(sizes) > 0 and count % -np.prod(sizes) == 0:
        sizes[sizes.index(-1)] = count // int(-np.prod(sizes))
    if min(sizes) < 1 or np.prod(sizes) != count:
        raise ValueError(
            f"parallel.data={data}, parallel.fsdp={fsdp} do not fit {count} devices: their product "
            f"must be {count}, and one of them may be -1 to take what is left."
        )
    groups = by_slice(devices, slices)
    if sizes[0] % len(groups):
        raise ValueError(
            f"parallel.data={data}, parallel.fsdp={fsdp} do not fit {len(groups)} slices of "
            f"{count // len(groups)} devices: 'data' must be a multiple of {len(groups)}, so that "
            "'fsdp' stays inside a slice."
        )
    # Neighbours in the mesh are neighbours in a TPU's torus as far as the sizes let them.
    inside = (sizes[0] // len(groups), sizes[1])
    grids = [
        mesh_utils.create_device_mesh(inside, group, allow_split_physical_axes=True)
        for group in groups
    ]
    # A mesh has explicit axes unless told; these programs leave propagation to the compiler.
    return Mesh(np.concatenate(grids), BATCH_AXES, axis_types=(AxisType.Auto,) * 2)


def by_slice(devices: Sequence[jax.Device], slices: int) -> list[list[jax.Device]]:
    """Devices in groups that are linked faster than the groups are; arguments as `make_mesh`.

    Devices that say nothing of slices are grouped by process, as many processes to each slice.
    """
    if devices[0].platform == "tpu":
        # A slice of a topology that is only compiled for has no number.
        numbers = [getattr(device, "slice_index", 0) or 0 for device in devices]
        if slices not in (0, len(set(numbers))):
            raise ValueError(
                f"parallel.slices={slices}, but these devices are of {len(set(numbers))}; 0 takes "
                "what they say."
            )
    else:
        slices = slices or 1
        if len(devices) % slices:
            raise ValueError(
                f"parallel.slices={slices} must divide the {len(devices)} devices evenly."
            )
        devices = sorted(devices, key=lambda device: (device.process_index, device.id))
        numbers = [i * slices // len(devices) for i in range(len(devices))]
    groups = {number: [] for number in sorted(set(numbers))}
    for device, number in zip(devices, numbers, strict=True):
        groups[number].append(device)
    if len({len(group) for group in groups.values()}) > 1:
        sizes = {number: len(group) for number, group in groups.items()}
        raise ValueError(f"The slices differ in size: {sizes} devices; start equal ones.")
    return list(groups.values())


def per_shard(fn: Callable, mesh: Mesh, *, batched: int, gives_rows: bool = False) -> Callable:
    """`fn` as an island in a jitted program: each device runs it on its rows of the batch.

    Args:
      fn: called with axis_name=BATCH_AXES; returns values that are equal on every shard.
      mesh: with the axes BATCH_AXES.
      batched: how many leading positional arguments, trees of arrays, are split by rows.
      gives_rows: `fn` returns each shard's rows instead, a tree of [b, ...].

    Returns:
      run(*args, **batched_kwargs): the first `batched` arguments and every keyword argument that is
      not None are split along their first dimension, the others are copied to every device.
    """

    def run(*args, **batched_kwargs):
        named = {key: value for key, value in batched_kwargs.items() if value is not None}
        rows = P(BATCH_AXES)
        specs = tuple(rows if i < batched else P() for i in range(len(args)))
        return jax.shard_map(
            lambda args, named: fn(*args, axis_name=BATCH_AXES, **named),
            mesh=mesh,
            in_specs=(specs, dict.fromkeys(named, rows)),
            out_specs=rows if gives_rows else P(),
        )(args, named)

    return run


def on_own_rows(encode: Callable, mesh: Mesh, layout) -> Callable:
    """`encode` as an island: each device embeds its rows of the batch with the whole parameters.

    Parameters that are split are gathered once before, and gradients are summed (and split) once
    after, in float32. Left to itself the compiler sums them in every layer and every turn of a loop
    over rows, in the dtype of the computation, and with parameters split over all devices it may
    split the activations instead, which then do not fit.

    Args:
      encode: (params, batch, key) -> (rows, shared): a tree of [b, ...], and one of what is equal
        on every device, for which `encode` may sum over BATCH_AXES.
      mesh: with the axes BATCH_AXES.
      layout: the sharding of every parameter, as `shardings` gives them.

    Returns:
      run(params, batch, key), as `encode`; each device has a key of its own.
    """
    split = jax.tree.map(lambda sharding: sharding.spec, layout)

    def run(params, batch, key):
        def local(params, batch, key):
            params = jax.tree.map(_whole, params, split)
            own_key = jax.random.fold_in(key, first_row(1, BATCH_AXES))
            return encode(params, batch, own_key)

        rows = P(BATCH_AXES)
        # Unchecked: the kernels that attention may use do not say on which axes they vary.
        return jax.shard_map(
            local, mesh=mesh, in_specs=(split, rows, P()), out_specs=(rows, P()), check_vma=False
        )(params, batch, key)

    return run


def _whole(part, spec):
    """A parameter from the part of it that `shardings` left on this device."""
    if "fsdp" not in spec:
        return part
    # Its gradient is split over 'fsdp' first, so that only a part is summed over 'data'.
    return gather_parts(part, "fsdp", spec.index("fsdp"))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows split over all devices."""
    return NamedSharding(mesh, P(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, P())


def shardings(tree, mesh: Mesh, rules: Sequence[tuple[str, str]]):
    """The sharding of every leaf of a tree of arrays (or shapes) by path rules; first match wins.

    Args:
      tree: of parameters, or of a whole train state: the path of an optimizer's moment ends in the
        path of its parameter, so the same rules hold for both.
      mesh: with the axes BATCH_AXES.
      rules: (regex over the path, 'replicate' or 'fsdp'); a path without a match is replicated.
        'fsdp' splits the largest dimension that the axis size divides, and copies a leaf without.

    Raises:
      ValueError: a value other than these two.
    """
    size = mesh.shape["fsdp"]

    def of_leaf(leaf, how):
        if how not in ("replicate", "fsdp"):
            raise ValueError(f"Unknown sharding {how!r}; known: fsdp, replicate.")
        dims = [i for i, n in enumerate(leaf.shape) if n % size == 0 and n >= size]
        if how == "replicate" or size == 1 or not dims:
            return replicated(mesh)
        largest = max(dims, key=lambda i: leaf.shape[i])
        return NamedSharding(mesh, P(*(None,) * largest, "fsdp"))

    return jax.tree.map(of_leaf, tree, match_rules(rules, tree, "replicate"))


def jit_step(step: Callable, mesh: Mesh, state_shardings) -> Callable:
    """step(state, batch) -> (state, metrics) compiled over a mesh; the state's memory is reused."""
    return jax.jit(
        step,
        in_shardings=(state_shardings, batch_sharding(mesh)),
        out_shardings=(state_shardings, replicated(mesh)),
        donate_argnums=0,
    )


def pmap_step(step: Callable, axis_name: str = "data") -> Callable:
    """step(state, batch) mapped by pmap: one unreplicated state, a batch [devices, b, ...]."""
    # No donation: an unreplicated state is still in use on other devices when one is done with it.
    mapped = jax.pmap(step, axis_name=axis_name, in_axes=(None, 0), out_axes=(None, None))
    if jax.process_count() == 1:
        return mapped
    everywhere = pmap_state_sharding(axis_name)

    def spanning(x):
        parts = [shard.data for shard in x.addressable_shards]
        return jax.make_array_from_single_device_arrays(x.shape, everywhere, parts)

    # pmap returns arrays of this process alone; checkpoints and evaluations want those of all.
    return lambda state, batch: jax.tree.map(spanning, mapped(state, batch))


def pmap_state_sharding(axis_name: str = "data") -> NamedSharding:
    """Where `pmap_step` leaves its state; one that begins elsewhere is compiled for twice."""
    return replicated(Mesh(jax.devices(), (axis_name,), axis_types=(AxisType.Auto,)))


def put_batch(batch: Mapping, mesh: Mesh) -> dict:
    """This process's rows of the global batch onto its devices, as arrays that span all processes.

    Args:
      batch: a tree of arrays [b, ...].

    Raises:
      ValueError: the rows cannot be split evenly over this process's devices.
    """
    sharding = batch_sharding(mesh)
    check_divides(len(jax.tree.leaves(batch)[0]), mesh.local_mesh.size)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def put_pmap_batch(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """This process's rows of the global batch as [local devices, b, ...] for `pmap_step`."""
    devices = jax.local_device_count()
    check_divides(len(next(iter(batch.values()))), devices)
    return {k: v.reshape(devices, -1, *v.shape[1:]) for k, v in batch.items()}


def check_divides(batch_size: int, devices: int, chunks: int = 1, every: int = 1) -> None:
    """Raises ValueError where a batch cannot be split evenly over devices, and there in chunks, of
    one row in `every`.
    """
    parts = devices * chunks * every
    if batch_size % parts or batch_size < parts:
        nearest = max(round(batch_size / parts), 1) * parts
        times = f" times {chunks} chunks" if chunks > 1 else ""
        times += f" times matching_every={every}" if every > 1 else ""
        raise ValueError(
            f"batch_size={batch_size} must be a multiple of {devices} devices{times}; "
            f"the nearest is {nearest}."
        )
