# SPDX-License-Identifier: Apache-2.0
"""Peers that run on PyTorch. Module peers run their attention core: linear projections are replaced by given tensors."""
import torch
import torch.nn.functional as F
from torch import nn

from job import DENSE_LIMIT, Job, Peer


def tensors(x):
    return {key: torch.from_numpy(value) for key, value in x.items()}


def numpy(t):
    return t.detach().contiguous().numpy()


def make_job(cell, forward, t, leaves, heads=lambda o: o, give=lambda do: do, **kw):
    """`forward()` -> output. `heads` maps it (and gradients) to [b, h, n, d]; `give` maps do to the output's layout."""
    if not cell.backward:
        return Job(torch.inference_mode()(forward), torch.inference_mode()(lambda: [numpy(heads(forward()))]), **kw)
    for leaf in leaves:
        leaf.requires_grad_()
    do, saved = give(t["do"]), forward()
    back = lambda o: torch.autograd.grad(o, leaves, do, retain_graph=True)
    layout = lambda g: numpy(heads(g)) if g.dim() > 2 else numpy(g)
    return Job(lambda: back(saved), lambda: [layout(g) for g in back(saved)], **kw)


def window_mask(cell):
    """Boolean [n, n] with the window, dilation and global tokens."""
    position = torch.arange(cell.n, dtype=torch.int32)
    distance = position[:, None] - position[None]
    keep = (distance <= cell.before * cell.dilation) & (-distance <= cell.after * cell.dilation)
    if cell.dilation > 1:
        keep &= distance % cell.dilation == 0
    g = getattr(cell, "global")
    keep[:g], keep[:, :g] = (True, True) if g else (keep[:g], keep[:, :g])
    return keep


class Given(nn.Module):
    """Stands in for a projection: returns the same tensor whatever it is given (a copy if the caller writes into it)."""
    def __init__(self, value, copy=False):
        super().__init__()
        self.value, self.copy = value, copy

    def forward(self, _):
        return self.value.clone() if self.copy else self.value


class Sdpa(Peer):
    """scaled_dot_product_attention, with a dense boolean mask where it has no option for the pattern."""
    name = "torch-sdpa"

    def supports(self, cell):
        if cell.windowed and cell.n * cell.keys > DENSE_LIMIT:
            return False
        return cell.operator in ("sgemm", "full", "window", "longformer", "linformer", "compressive") and not cell.relpos

    def build(self, cell, x):
        if cell.operator == "sgemm":
            a, b, c = (torch.randn(cell.n, cell.n) for _ in range(3))
            return Job(lambda: torch.mm(a, b, out=c), lambda: [])
        t = tensors(x)
        q, k, v = t["q"], t["k"], t["v"]
        leaves, options = [q, k, v], {}
        if cell.operator in ("window", "longformer"):
            options = {"attn_mask": window_mask(cell)}
        elif cell.operator == "compressive":
            parts = [[part.contiguous() for part in a.split([cell.cmem, cell.mem, cell.n], 2)] for a in (k, v)]
            options = {"attn_mask": torch.ones(cell.n, cell.keys, dtype=torch.bool).tril(cell.keys - cell.n)}
            if not cell.backward:      # three segments, as a caller holds them
                return make_job(cell, lambda: F.scaled_dot_product_attention(
                    q, torch.cat(parts[0], 2), torch.cat(parts[1], 2), **options), t, leaves)
        elif cell.operator == "linformer":
            e, f = t["e"], t["f"]
            return make_job(cell, lambda: F.scaled_dot_product_attention(q, e.T @ k, f.T @ v), t, [q, k, v, e, f])
        else:
            options = {"is_causal": cell.causal}
        return make_job(cell, lambda: F.scaled_dot_product_attention(q, k, v, **options), t, leaves)


class SdpaCpp(Peer):
    """The same operator called from C++ in a loop: small cells without the cost of Python."""
    name = "torch-sdpa-cpp"
    SOURCE = """
    at::Tensor run(at::Tensor q, at::Tensor k, at::Tensor v, bool causal, int64_t calls) {
      c10::InferenceMode guard;
      at::Tensor out;
      for (int64_t i = 0; i < calls; ++i) out = at::scaled_dot_product_attention(q, k, v, {}, 0.0, causal);
      return out;
    }"""

    def supports(self, cell):
        return cell.operator == "full" and not cell.backward and cell.n <= 128

    def build(self, cell, x):
        from torch.utils.cpp_extension import load_inline
        run = load_inline("sdpa_loop", self.SOURCE, functions=["run"]).run
        t = tensors(x)
        loop = lambda calls: run(t["q"], t["k"], t["v"], cell.causal, calls)
        return Job(lambda: loop(64), lambda: [numpy(loop(1))], calls=64)


class Flex(Peer):
    """Compiled FlexAttention; the block mask is made once, outside the timing."""
    name = "torch-flex"

    def supports(self, cell):
        masked = cell.operator in ("window", "longformer") or cell.op.startswith("full") and cell.causal
        return (masked or cell.operator == "compressive" and not cell.relpos) and cell.n >= 64

    def build(self, cell, x):
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention
        t, past, g, step = tensors(x), cell.keys - cell.n, getattr(cell, "global"), cell.dilation
        before, after = cell.before * step, (0 if cell.causal else cell.after * step)

        def mask_mod(_b, _h, i, j):
            distance = i + past - j
            keep = (distance <= before) & (-distance <= after)
            keep = keep & (distance % step == 0) if step > 1 else keep
            return keep | (i < g) | (j < g) if g else keep

        torch._dynamo.reset()
        mask = create_block_mask(mask_mod, None, None, cell.n, cell.keys, device="cpu", _compile=cell.n > 8192)
        compiled = torch.compile(flex_attention, dynamic=False)
        return make_job(cell, lambda: compiled(t["q"], t["k"], t["v"], block_mask=mask), t, [t["q"], t["k"], t["v"]])


class Chunked(Peer):
    """What a careful PyTorch user writes for a window: overlapping key views per block of queries, then SDPA.

    Queries go in blocks of w = max(window, 64); an interior block sees the 3 (causal: 2) key blocks around it as a strided
    view, without a copy. Dilation: one such problem per residue class, also as a view. First and last block separately.
    """
    name = "torch-chunked"

    def supports(self, cell):
        block = max(cell.before, 64) * cell.dilation
        return cell.operator == "window" and cell.n % block == 0 and cell.n >= 3 * block

    def build(self, cell, x):
        t, step, w = tensors(x), cell.dilation, max(cell.before, 64)
        right = 0 if cell.after == 0 else 1
        length = cell.n // step
        blocks = length // w
        distance = w + torch.arange(w)[:, None] - torch.arange((2 + right) * w)[None]
        mask = (distance <= cell.before) & (-distance <= cell.after)

        def split(a):                                    # [b*h*step, length, d], one row per residue class
            return a.unflatten(2, (length, step)).transpose(2, 3).flatten(0, 2)

        def forward():
            q, k, v = (split(t[key]) for key in "qkv")
            around = [a.unfold(1, (2 + right) * w, w).transpose(-1, -2) for a in (k, v)]
            middle = F.scaled_dot_product_attention(
                q[:, w:length - right * w].unflatten(1, (blocks - 1 - right, w)), *around, attn_mask=mask).flatten(1, 2)
            ends = [F.scaled_dot_product_attention(q[:, None, :w], k[:, None, :(1 + right) * w], v[:, None, :(1 + right) * w],
                                                   attn_mask=mask[:, w:])[:, 0], middle]
            if right:
                ends.append(F.scaled_dot_product_attention(q[:, None, -w:], k[:, None, -2 * w:], v[:, None, -2 * w:],
                                                           attn_mask=mask[:, :2 * w])[:, 0])
            out = torch.cat(ends, 1)
            return out.unflatten(0, (cell.b, cell.h, step)).transpose(2, 3).flatten(2, 3)

        return make_job(cell, forward, t, [t["q"], t["k"], t["v"]])


class HfLongformer(Peer):
    """transformers LongformerSelfAttention with the six projections given; the copies of queries that it needs are timed."""
    name = "hf-longformer"

    def supports(self, cell):
        return (cell.operator == "longformer" or cell.operator == "window" and cell.dilation == 1) and (
            cell.before == cell.after and cell.n % (2 * cell.before) == 0)

    def build(self, cell, x):
        from transformers import LongformerConfig
        from transformers.models.longformer.modeling_longformer import LongformerSelfAttention
        width, g = cell.h * cell.d, getattr(cell, "global")
        config = LongformerConfig(hidden_size=width, num_attention_heads=cell.h, attention_window=[2 * cell.before],
                                  num_hidden_layers=1, attention_probs_dropout_prob=0.0)
        module, t = LongformerSelfAttention(config, 0).eval(), tensors(x)
        to_rows = lambda a: a.permute(2, 0, 1, 3).reshape(a.shape[2], cell.b, width).contiguous()   # [n, b, h*d]
        hidden = to_rows(t["q"]).transpose(0, 1)
        mask = torch.zeros(cell.b, cell.n)
        mask[:, :g] = 10000.0
        call = lambda: module(hidden, attention_mask=mask, is_index_masked=mask < 0, is_index_global_attn=mask > 0,
                              is_global_attn=g > 0)[0]
        q, k, v = (t[key] for key in "qkv")
        if cell.backward:
            q, k, v = (a.requires_grad_() for a in (q, k, v))

        def forward():
            rows = [to_rows(a) for a in (q, k, v)] if cell.backward else given
            module.query, module.key, module.value = Given(rows[0], copy=True), Given(rows[1]), Given(rows[2])
            module.query_global, module.key_global, module.value_global = (
                Given(rows[0][:g], copy=True), Given(rows[1]), Given(rows[2]))
            return call()

        given = [to_rows(a) for a in (q, k, v)]
        heads = lambda o: o if o.dim() == 4 else o.unflatten(2, (cell.h, cell.d)).transpose(1, 2)
        return make_job(cell, forward, t, [q, k, v], heads, give=lambda do: do.transpose(1, 2).flatten(2))


class LucidLinformer(Peer):
    """linformer.LinformerSelfAttention with given q, k, v and no output projection; eager einsums."""
    name = "lucid-linformer"

    def supports(self, cell):
        return cell.operator == "linformer"

    def build(self, cell, x):
        from linformer import linformer
        t, width = tensors(x), cell.h * cell.d
        module = linformer.LinformerSelfAttention(width, cell.n, k=cell.k, heads=cell.h)
        e, f = module.proj_k, module.proj_v
        e.data, f.data = t["e"], t["f"]
        rows = {key: t[key].transpose(1, 2).flatten(2).contiguous() for key in "qkv"}
        module.to_q, module.to_k, module.to_v, module.to_out = *(Given(rows[key]) for key in "qkv"), nn.Identity()
        heads = lambda o: o.unflatten(2, (cell.h, cell.d)).transpose(1, 2)
        return make_job(cell, lambda: module(rows["q"]), t, [*rows.values(), e, f], heads,
                        give=lambda do: do.transpose(1, 2).flatten(2))


class PerformerPytorch(Peer):
    """performer_pytorch.FastAttention with a given projection matrix; causal is its non-CUDA path."""
    name = "performer-pytorch"

    def supports(self, cell):
        return cell.operator == "performer"

    def build(self, cell, x):
        from performer_pytorch import FastAttention
        t = tensors(x)
        module = FastAttention(cell.d, cell.m, causal=cell.causal)
        module.projection_matrix.copy_(t["w"])
        return make_job(cell, lambda: module(t["q"], t["k"], t["v"]), t, [t["q"], t["k"], t["v"]],
                        eps=(1e-4, 1e-6 if cell.causal else 0.0))


class LucidCompressive(Peer):
    """compressive_transformer_pytorch.SelfAttention with given q and kv, no output projection, no memory update.

    It joins the raw memories itself (timed: it is part of its forward), applies its own causal mask, and with relpos adds
    the shifted position term.
    """
    name = "lucid-compressive"

    def supports(self, cell):
        return cell.operator == "compressive"

    def build(self, cell, x):
        from compressive_transformer_pytorch.compressive_transformer_pytorch import SelfAttention
        t, width = tensors(x), cell.h * cell.d
        module = SelfAttention(width, cell.n, cell.mem, cell.cmem, heads=cell.h).eval()
        q, k, v = (t[key].transpose(1, 2).flatten(2).contiguous() for key in "qkv")
        cmem, mem, current = (part.contiguous() for part in k.split([cell.cmem, cell.mem, cell.n], 1))
        if cell.backward:
            for a in (q, k, v):
                a.requires_grad_()
        module.to_q, module.to_out, module.to_kv = Given(q), nn.Identity(), Given(torch.cat((k, v), -1))
        forward = lambda: module(current, memories=(mem, cmem), pos_emb=t.get("r"), calc_memory=False)[0]
        return make_job(cell, forward, t, [q, k, v], lambda o: o.unflatten(2, (cell.h, cell.d)).transpose(1, 2),
                        give=lambda do: do.transpose(1, 2).flatten(2))


class LocalAttentionPackage(Peer):
    """local_attention.LocalAttention with exact window size and no rotary embedding."""
    name = "local-attention"

    def supports(self, cell):
        return cell.operator == "window" and cell.dilation == 1 and cell.n % cell.before == 0

    def build(self, cell, x):
        from local_attention import LocalAttention
        t, causal = tensors(x), cell.after == 0
        module = LocalAttention(cell.before, causal=causal, look_backward=1, look_forward=0 if causal else 1,
                                exact_windowsize=True, use_rotary_pos_emb=False)
        return make_job(cell, lambda: module(t["q"], t["k"], t["v"]), t, [t["q"], t["k"], t["v"]])


PEERS = [Sdpa, SdpaCpp, Flex, Chunked, HfLongformer, LucidLinformer, PerformerPytorch, LucidCompressive,
         LocalAttentionPackage]
