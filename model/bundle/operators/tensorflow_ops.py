"""Check that a SavedModel only computes and reads its own weights.

A TensorFlow graph is a program: its operators can read and write files, run Python and
open sockets. The allowlist holds the operators of this project's exports, past and
present: all cells, layers, directions and tasks. How they are connected is not checked,
so a graph may still compute for ever.

Every SavedModel has operators that save and restore weights; TensorFlow Serving
restores with them. They may only be reachable from the saver: neither from a signature
nor from any function that `tf.saved_model.load` makes callable.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from model.bundle.operators import protobuf_subset

# In the functions that a signature calls, directly or not.
COMPUTING = frozenset(
    {
        # numbers and shapes
        *("Const", "Identity", "NoOp", "Cast", "Fill", "Range", "Shape"),
        *("ConcatV2", "ExpandDims", "GatherV2", "Pack", "Unpack", "Reshape", "Split"),
        "SplitV",
        *("Pad", "ReverseSequence", "SelectV2", "Squeeze", "StridedSlice"),
        *("Transpose", "Prod", "Less", "LogicalAnd", "FloorDiv", "Minimum"),
        # layers
        *("AddV2", "BiasAdd", "Cumsum", "MatMul", "Maximum", "Mul", "RealDiv"),
        *("Sigmoid", "Softmax", "Sub", "Sum", "Tanh"),
        # weights
        "ReadVariableOp",
        # loops over time
        *("StatefulPartitionedCall", "While", "TensorListFromTensor"),
        *("TensorListGetItem", "TensorListReserve", "TensorListSetItem"),
        "TensorListStack",
    }
)
# Outside of functions: the weights' handles and the signatures' inputs.
OUTSIDE = frozenset(
    {
        *("Const", "NoOp", "Placeholder", "ReadVariableOp", "VarHandleOp"),
        "StatefulPartitionedCall",
    }
)
# In the saver's functions only. Restoring may not write a file, and a served function
# may not change its weights.
RESTORING = frozenset({"AssignVariableOp", "RestoreV2"})
SAVING = frozenset(
    {
        *("DisableCopyOnRead", "MergeV2Checkpoints", "SaveV2", "Select"),
        *("ShardedFilename", "StaticRegexFullMatch", "StringJoin"),
    }
)
# Internal attributes of TensorFlow. Others are refused, since they may select another
# function than the one that a node names (`api_implements`).
PRIVATE = frozenset(
    {
        *("_collective_manager_ids", "_has_manual_control_dependencies"),
        *("_lower_using_switch_merge", "_num_original_outputs", "_output_shapes"),
        "_read_only_resource_inputs",
    }
)
OF_FUNCTIONS = frozenset({"_construction_context", "_input_shapes"})
OBJECTS = frozenset({"user_object", "variable", "bare_concrete_function"})
USER_OBJECTS = frozenset(
    {"_generic_user_object", "signature_map", "trackable_list_wrapper"}
)
NUMBERS = frozenset({1, 9})  # dtypes of weights: float32; int64 for an unused seed
MAIN_OP = "saved_model_main_op"


def check(data: bytes) -> None:
    """Refuse a SavedModel that could do more than a network.

    Args:
        data: `saved_model.pb`.

    Raises:
        ValueError: names the forbidden operator or feature.
    """
    graphs = protobuf_subset.saved_model(data).meta_graphs
    if len(graphs) != 1:
        raise ValueError(f"has {len(graphs)} graphs, not one")
    graph = graphs[0]
    saving, restoring = _node(graph.saver.save), _node(graph.saver.restore)
    if not saving or not restoring or saving == restoring:
        raise ValueError("has no saver")
    _check_objects(graph)
    _check_names(graph, {saving, restoring})
    library = _library(graph.graph.library)
    calls = {name: set(_called(f.node)) for name, f in library.items()}
    ends: dict[str, list[Any]] = {saving: [], restoring: []}
    for node in graph.graph.node:
        _check_node(node, OUTSIDE, "the graph")
        if {_node(name) for name in node.input} & {saving, restoring}:
            raise ValueError(f"{node.name} takes what its saver puts out")
        ends.setdefault(node.name, []).append(node)
    by_saver = {
        end: _reach(_called(ends.pop(end)), calls) for end in (saving, restoring)
    }
    only_saver = by_saver[saving] | by_saver[restoring]
    restorers = _restorers(graph, restoring)
    begin = {name for nodes in ends.values() for name in _called(nodes)}
    begin |= _of_objects(graph.objects) | (library.keys() - only_saver)
    served = _reach(begin, calls)
    for name, function in library.items():
        allowed = COMPUTING
        if name not in served:
            if name in by_saver[saving] and name in by_saver[restoring]:
                raise ValueError(f"function {name} saves and restores")
            if name in by_saver[saving]:
                allowed = COMPUTING | SAVING
            elif name in restorers:
                allowed = COMPUTING | RESTORING
        first = [argument.name for argument in function.signature.inputs[:1]]
        for node in function.node:
            _check_node(node, allowed, f"function {name}")
            if node.op == "RestoreV2" and node.input[:1] != first:
                raise ValueError(f"function {name} restores from a file of its choice")


def _restorers(graph: Any, restoring: str) -> set[str]:
    """Return the functions that restore weights from the file named by the caller."""
    nodes = [node for node in graph.graph.node if node.name == restoring]
    filename = [_node(graph.saver.filename)]
    if any([_node(name) for name in node.input[:1]] != filename for node in nodes):
        raise ValueError("restores from a file of its choice")
    return set(_called(nodes))


def _check_node(node: Any, allowed: frozenset[str], place: str) -> None:
    if node.op not in allowed:
        raise ValueError(f"operator {node.op} is not allowed in {place}")
    for attribute in node.attributes:
        key = attribute.key
        if key[:1] == "_" and key not in PRIVATE:
            raise ValueError(f"attribute {key} of {node.op} is not allowed in {place}")
        _check_value(attribute.value, place)


def _check_value(value: Any, place: str) -> None:
    """Refuse functions that the caller chooses, and tensors that hold programs or handles
    of foreign resources."""
    kind = value.WhichOneof("value")
    if kind == "placeholder":
        raise ValueError(f"a function in {place} is left to the caller")
    if kind in ("tensor", "list"):
        for tensor in [value.tensor] if kind == "tensor" else value.list.tensor:
            if tensor.handles or tensor.variants:
                raise ValueError(
                    f"a tensor in {place} holds more than numbers and text"
                )
    for called in _functions_of(value, kind):
        for attribute in called.attributes:
            _check_value(attribute.value, place)


def _functions_of(value: Any, kind: str | None) -> Iterable[Any]:
    if kind == "function":
        return [value.function]
    return value.list.function if kind == "list" else ()


def _check_objects(graph: Any) -> None:
    """Allow only variables and functions as objects that `tf.saved_model.load` creates.

    It would run the code of others (resources, tables, restore functions, assets).
    """
    if not graph.HasField("objects") or not graph.objects.nodes:
        raise ValueError("was written by TensorFlow 1")
    if graph.assets:
        raise ValueError("holds assets")
    for node in graph.objects.nodes:
        kind = node.WhichOneof("kind")
        if kind not in OBJECTS:
            raise ValueError(f"an object of the kind {kind} is not allowed")
        if kind == "user_object" and node.user_object.identifier not in USER_OBJECTS:
            raise ValueError(f"object {node.user_object.identifier} is not allowed")
        if kind == "variable" and node.variable.dtype not in NUMBERS:
            raise ValueError("a weight that holds no numbers")
        own = (node.registered_name, node.registered_saver, node.slots, node.saveables)
        if any(own) or node.HasField("serialized"):
            raise ValueError("an object with a way of its own to be saved")


def _check_names(graph: Any, saver: set[str]) -> None:
    """Refuse signatures and start-up operators that lead to the saver."""
    named = []
    for entry in graph.collections:
        if entry.key != MAIN_OP or entry.value.WhichOneof("kind") != "nodes":
            raise ValueError(f"collection {entry.key} is not allowed")
        named += entry.value.nodes.value
    for entry in graph.signatures:
        for tensor in (*entry.value.inputs, *entry.value.outputs):
            if tensor.value.WhichOneof("encoding") != "name":
                raise ValueError(f"signature {entry.key} takes more than tensors")
            named.append(tensor.value.name)
    for name in named:
        if _node(name) in saver:
            raise ValueError(f"a signature leads to its saver ({name})")


def _library(library: Any) -> dict[str, Any]:
    if library.gradient or library.registered_gradients:
        raise ValueError("holds gradients")
    functions: dict[str, Any] = {}
    for function in library.function:
        name = function.signature.name
        if name in functions or name in COMPUTING | OUTSIDE | SAVING | RESTORING:
            raise ValueError(f"has two meanings for {name}")
        for attribute in function.attributes:
            if attribute.key not in OF_FUNCTIONS:
                raise ValueError(
                    f"attribute {attribute.key} of function {name} is not allowed"
                )
        functions[name] = function
    return functions


def _of_objects(objects: Any) -> set[str]:
    bare = (node.bare_concrete_function.name for node in objects.nodes)
    return {*(entry.key for entry in objects.functions), *bare} - {""}


def _called(nodes: Iterable[Any]) -> Iterator[str]:
    for node in nodes:
        for attribute in node.attributes:
            yield from _functions(attribute.value)


def _functions(value: Any) -> Iterator[str]:
    for called in _functions_of(value, value.WhichOneof("value")):
        yield called.name
        for attribute in called.attributes:
            yield from _functions(attribute.value)


def _reach(begin: Iterable[str], calls: dict[str, set[str]]) -> set[str]:
    """Return the functions that are reachable from `begin`."""
    seen: set[str] = set()
    pending = list(begin)
    while pending:
        name = pending.pop()
        if name in calls and name not in seen:
            seen.add(name)
            pending += calls[name]
    return seen


def _node(name: str) -> str:
    """Return the name of the node that a tensor or a control input comes from."""
    return name.removeprefix("^").partition(":")[0]
