# SPDX-License-Identifier: Apache-2.0
"""Peers that run a compiled graph: ONNX Runtime, OpenVINO, JAX."""
import importlib.util
import os

import numpy as np

from job import DENSE_LIMIT, Job, Peer

THREADS = int(os.environ.get("OMP_NUM_THREADS", "1"))


def affordable(cell):
    return not cell.windowed or cell.n * cell.keys <= DENSE_LIMIT


def dense_mask(cell):
    from reference import allowed
    return np.concatenate([allowed(cell, rows) for rows in np.array_split(np.arange(cell.n), max(1, cell.n // 1024))])


class OnnxRuntime(Peer):
    """Shared by the ORT operators: inputs bound once, outputs bound to preallocated values, one node graph."""

    def run(self, node, feeds, outputs, opset):
        """`outputs`: {name: shape}, with the result under "o". Returns what runs the node, and the value of "o"."""
        import onnxruntime as ort
        from onnx import TensorProto, helper
        kinds = {"float32": TensorProto.FLOAT, "int32": TensorProto.INT32, "int64": TensorProto.INT64, "bool": TensorProto.BOOL}
        inputs = [helper.make_tensor_value_info(key, kinds[str(a.dtype)], a.shape) for key, a in feeds.items()]
        results = [helper.make_tensor_value_info(key, TensorProto.FLOAT, shape) for key, shape in outputs.items()]
        model = helper.make_model(helper.make_graph([node], "cell", inputs, results), ir_version=10 if opset < 23 else 11,
                                  opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)])
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = THREADS, 1, 3
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        values = {key: ort.OrtValue.ortvalue_from_numpy(a) for key, a in feeds.items()}
        binding = session.io_binding()
        for key, value in values.items():
            binding.bind_ortvalue_input(key, value)
        bound = {key: ort.OrtValue.ortvalue_from_shape_and_type(list(shape), np.float32) for key, shape in outputs.items()}
        for key, value in bound.items():
            binding.bind_ortvalue_output(key, value)
        return (lambda: session.run_with_iobinding(binding)), bound["o"]


def rows(a):
    """[b, h, n, d] -> [b, n, h*d], the layout of the contrib operators."""
    return np.ascontiguousarray(a.transpose(0, 2, 1, 3).reshape(a.shape[0], a.shape[2], -1))


def heads(cell, a):
    return a.reshape(cell.b, cell.n, cell.h, cell.d).transpose(0, 2, 1, 3)


class OrtMha(OnnxRuntime):
    """com.microsoft.MultiHeadAttention; only the dense float32 form has a fused kernel."""
    name = "ort-mha"

    def supports(self, cell):
        return cell.op in ("full_forward", "full_forward_causal")

    def build(self, cell, x):
        from onnx import helper
        node = helper.make_node("MultiHeadAttention", ["q", "k", "v"], ["o"], domain="com.microsoft", num_heads=cell.h,
                                unidirectional=int(cell.causal))
        call, o = self.run(node, {key: rows(x[key]) for key in "qkv"}, {"o": (cell.b, cell.n, cell.h * cell.d)}, 21)
        return Job(call, lambda: [call(), heads(cell, o.numpy())][1:])


class OrtGqa(OnnxRuntime):
    """com.microsoft.GroupQueryAttention: causal, causal window (local_window_size)."""
    name = "ort-gqa"

    def supports(self, cell):
        return cell.op == "full_forward_causal" or cell.op == "window_forward" and cell.after == 0 and cell.dilation == 1

    def build(self, cell, x):
        from onnx import helper
        node = helper.make_node("GroupQueryAttention", ["q", "k", "v", "", "", "last", "total"], ["o", "nk", "nv"],
                                domain="com.microsoft", num_heads=cell.h, kv_num_heads=cell.h,
                                local_window_size=cell.before + 1 if cell.windowed else -1)
        feeds = {key: rows(x[key]) for key in "qkv"}
        feeds |= {"last": np.full(cell.b, cell.n - 1, np.int32), "total": np.array([cell.n], np.int32)}
        cache = (cell.b, cell.h, cell.n, cell.d)
        call, o = self.run(node, feeds, {"o": (cell.b, cell.n, cell.h * cell.d), "nk": cache, "nv": cache}, 21)
        return Job(call, lambda: [call(), heads(cell, o.numpy())][1:])


class OrtAttention(OnnxRuntime):
    """The standard ONNX Attention operator (opset 24); windows as a dense boolean mask."""
    name = "ort-attention"

    def supports(self, cell):
        return cell.operator in ("full", "window", "longformer", "compressive") and not cell.backward and (
            not cell.relpos and affordable(cell))

    def build(self, cell, x):
        from onnx import helper
        feeds = {key: x[key] for key in "qkv"}
        if cell.operator != "full":
            feeds["mask"] = dense_mask(cell)
        node = helper.make_node("Attention", list(feeds), ["o"], is_causal=int(cell.op == "full_forward_causal"))
        call, o = self.run(node, feeds, {"o": x["q"].shape}, 24)
        return Job(call, lambda: [call(), o.numpy()][1:])


class OpenVino(Peer):
    """OpenVINO opset13 ScaledDotProductAttention in a compiled model."""
    name = "openvino"

    def supports(self, cell):
        return cell.operator in ("full", "window", "longformer", "compressive") and not cell.backward and (
            not cell.relpos and affordable(cell))

    def build(self, cell, x):
        import openvino as ov
        from openvino import opset13 as op
        arrays = [x[key] for key in "qkv"]
        parameters = [op.parameter(list(a.shape), ov.Type.f32, name=key) for key, a in zip("qkv", arrays)]
        extra = {}
        if cell.operator != "full":
            arrays.append(dense_mask(cell))
            parameters.append(op.parameter([cell.n, cell.keys], ov.Type.boolean, name="mask"))
            extra = {"attention_mask": parameters[3]}
        o = op.scaled_dot_product_attention(*parameters[:3], causal=cell.op == "full_forward_causal", **extra)
        model = ov.Core().compile_model(ov.Model([o], parameters, "cell"), "CPU", {
            "INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": THREADS, "PERFORMANCE_HINT": "LATENCY"})
        request = model.create_infer_request()
        shared = [(ov.Tensor(a, shared_memory=True), a) for a in arrays]
        for i, (tensor, _) in enumerate(shared):
            request.set_input_tensor(i, tensor)

        def outputs():
            request.infer()
            assert shared                                 # shared input memory lives as long as the job
            return [request.get_output_tensor(0).data]
        layers = sorted({str(node.get_rt_info()["layerType"].astype(str)) for node in model.get_runtime_model().get_ops()})
        return Job(request.infer, outputs, note="layers: " + " ".join(layers))


class Jax(Peer):
    """jax.nn.dot_product_attention (XLA), ahead of time compiled; windows through local_window_size, else a dense mask."""
    name = "jax-dpa"

    def supports(self, cell):
        return cell.operator in ("full", "window", "linformer", "compressive") and not cell.relpos and affordable(cell)

    def build(self, cell, x):
        import jax
        import jax.numpy as jnp
        kw, names = {}, ["q", "k", "v"]
        if cell.windowed and cell.dilation == 1:
            kw = {"local_window_size": (cell.before, cell.after)}
        elif cell.op.startswith("full"):
            kw = {"is_causal": cell.causal}
        elif cell.operator == "linformer":
            names += ["e", "f"]
        else:
            kw = {"mask": jnp.asarray(dense_mask(cell))[None, None]}
        args = [jnp.asarray(x[key] if x[key].ndim < 4 else x[key].transpose(0, 2, 1, 3)) for key in names]

        def forward(q, k, v, *projections):
            if projections:
                k, v = (jnp.einsum("bnhd,nk->bkhd", a, p) for a, p in zip((k, v), projections))
            return jax.nn.dot_product_attention(q, k, v, **kw)

        return jax_job(cell, x, forward, args, lambda a: a.transpose(0, 2, 1, 3) if a.ndim == 4 else a)


def jax_job(cell, x, forward, args, heads, **extra):
    import jax
    to_numpy = lambda a: heads(np.asarray(a))
    if not cell.backward:
        run = jax.jit(forward).lower(*args).compile()
        return Job(lambda: run(*args).block_until_ready(), lambda: [to_numpy(run(*args))], **extra)
    do = jax.numpy.asarray(x["do"].transpose(0, 2, 1, 3))
    pull = jax.jit(lambda *a: jax.vjp(forward, *a)[1])(*args)
    compiled = jax.jit(lambda vjp, g: vjp(g)).lower(pull, do).compile()
    return Job(lambda: jax.block_until_ready(compiled(pull, do)), lambda: [to_numpy(a) for a in compiled(pull, do)], **extra)


class GooglePerformer(Peer):
    """The original FAVOR+ code for JAX, from the file that PERFORMER_JAX names: it is not on a package index."""
    name = "google-performer-jax"

    def supports(self, cell):
        return cell.operator == "performer"

    def build(self, cell, x):
        import jax.numpy as jnp
        if "PERFORMER_JAX" not in os.environ:
            raise ModuleNotFoundError("--performer-jax does not name fast_attention.py")
        spec = importlib.util.spec_from_file_location("fast_attention", os.environ["PERFORMER_JAX"])
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        attention = module.make_fast_softmax_attention(cell.d, nb_features=cell.m, redraw_features=False,
                                                       unidirectional=cell.causal)
        attention.__self__.projection_matrix = jnp.asarray(x["w"])
        args = [jnp.asarray(x[key].transpose(0, 2, 1, 3)) for key in "qkv"]
        # Its gradient also flows through the key maximum; with the constant above that changes dk by up to 1 % here.
        return jax_job(cell, x, attention, args, lambda a: a.transpose(0, 2, 1, 3), eps=(1e-6, 0.0),
                       tolerance=2e-2 if cell.backward else None)


PEERS = [OrtMha, OrtGqa, OrtAttention, OpenVino, Jax, GooglePerformer]
