"""What kinds of arguments the runtime's operators take.

The runtime checks how many arguments an instruction has, and then takes each for what the
operator's signature says: a number where a tensor belongs ends the process. So does writing to
a constant, which lies in memory that cannot be written. `TABLE` has every operator of the
ExecuTorch wheel (a test makes it anew from there); an operator that is not in it is not checked.

One letter an argument, `?` if it may be None. The last one is what the operator returns, for more
than one tensor a list of them:

    T tensor             W tensor that is written    r result, of any kind
    L tensors            M tensors that are written  O tensors or None
    i int  f float  b bool  n number  s string       I ints  F floats  B bools
"""

from __future__ import annotations

import re
from functools import cache

from mmpack.multimethod.link.schema import (
    Bool,
    BoolList,
    Double,
    DoubleList,
    Int,
    IntList,
    Null,
    OptionalTensorList,
    String,
    Tensor,
    TensorList,
)

KINDS: dict[str, tuple[type, ...]] = {
    "T": (Tensor,),
    "W": (Tensor,),
    "L": (TensorList,),
    "M": (TensorList,),
    "O": (OptionalTensorList,),
    "i": (Int,),
    "f": (Double,),
    "b": (Bool,),
    "n": (Int, Double, Bool),
    "s": (String,),
    "I": (IntList,),
    "F": (DoubleList,),
    "B": (BoolList,),
}

WRITTEN = "WM"


@cache
def arguments_of(operator: str) -> tuple[str, ...] | None:
    """The arguments of "aten::add.out", say; None if the operator is not known."""
    signature = _by_name().get(operator)
    return tuple(re.findall(r"[A-Za-z]\??", signature)) if signature is not None else None


def kinds_of(argument: str) -> tuple[type, ...] | None:
    """The kinds of values that an argument may be; None if any."""
    if argument == "r":
        return None
    return (*KINDS[argument[0]], *((Null,) if argument.endswith("?") else ()))


@cache
def _by_name() -> dict[str, str]:
    signature, found = "", {}
    for word in TABLE.split():
        if word.endswith(":"):
            signature = word[:-1]
        else:
            found[word] = signature
    return found


TABLE = """
II?Wr: dim_order_ops::_empty_dim_order.out
IWr: aten::ones.out aten::rand.out aten::randn.out aten::zeros.out
Ii?Wr: aten::empty.out
InWr: aten::full.out
LiWr: aten::cat.out aten::stack.out
TI?F?Wr: aten::upsample_nearest2d.vec_out
TI?bF?Wr: aten::upsample_bilinear2d.vec_out
TI?bWr: aten::any.dims_out
TI?bbWr: aten::var.out
TI?bi?Wr: aten::mean.out aten::sum.IntList_out
TI?n?bWWr: aten::var_mean.correction_out
TI?n?bWr: aten::var.correction_out
TIIIIbWWr: aten::max_pool2d_with_indices.out
TIIIbbi?Wr: aten::avg_pool2d.out
TIIWr: aten::roll.out
TIIi?Wr: aten::as_strided_copy.out
TIT?T?fWWWr: aten::native_layer_norm.out
TIWr: aten::_adaptive_avg_pool2d.out aten::flip.out aten::permute_copy.out
    aten::reflection_pad1d.out aten::reflection_pad2d.out aten::reflection_pad3d.out
    aten::repeat.out aten::replication_pad1d.out aten::replication_pad2d.out
    aten::replication_pad3d.out aten::squeeze_copy.dims_out aten::view_copy.out
TIbWr: aten::amax.out aten::amin.out aten::expand_copy.out
TIbf?f?Wr: aten::_upsample_bilinear2d_aa.out
TIiMr: aten::split_with_sizes_copy.out
TIibWr: aten::_fft_r2c.out
TIiiWr: aten::_fft_c2r.out
TInWr: aten::constant_pad_nd.out
TIr: executorch_prim::et_view.default
TOTbWr: aten::index_put.out
TOWr: aten::index.Tensor_out
TT?T?TTffWWWr: aten::_native_batch_norm_legit_no_training.out
TT?T?WWbffWWWr: aten::_native_batch_norm_legit.out
TT?T?Wr: aten::clamp.Tensor_out
TT?T?bffWWWr: aten::_native_batch_norm_legit.no_stats_out
TT?T?iiiifWWWr: aten::native_group_norm.out
TTIIIIbTWr: aten::max_pool2d_with_indices_backward.grad_input
TTT?IIIbIiWr: aten::convolution.out
TTT?Wr: aten::linear.out
TTT?iiTWr: quantized_decomposed::embedding_2bit.out quantized_decomposed::embedding_4bit.out
    quantized_decomposed::embedding_byte.out
TTT?iiTi?Wr: quantized_decomposed::embedding_2bit.dtype_out
    quantized_decomposed::embedding_4bit.dtype_out
    quantized_decomposed::embedding_byte.dtype_out
TTT?iiiii?Wr: quantized_decomposed::dequantize_per_channel.out
TTTI?IIIbIiBWWWr: aten::convolution_backward.out
TTTT?Wr: quantized_decomposed::mixed_mm.out
TTTT?i?Wr: quantized_decomposed::mixed_linear.out
TTTTTTWWr: llama::channelwise_gated_delta_rule.out llama::gated_delta_rule.out
TTTTTiiiiiisfWr: llama::quantized_moe_ffn.out
TTTWWiiT?fbf?Wr: llama::sdpa_with_kv_cache.out
TTTWr: aten::masked_scatter.out aten::where.self_out
TTTiT?fbf?T?T?T?T?T?T?bWr: llama::custom_quantized_sdpa.out
TTTiT?fbf?Wr: llama::custom_sdpa.out
TTTiiiWr: quantized_decomposed::quantize_per_tensor.Tensor_out
    quantized_decomposed::quantize_per_token.out
TTTiiii?Wr: quantized_decomposed::dequantize_per_tensor.Tensor_out
TTTiiiiWr: quantized_decomposed::dequantize_per_token.out
    quantized_decomposed::quantize_per_channel.out
TTTnnWr: aten::addmm.out
TTWr: aten::atan2.out aten::bitwise_and.Tensor_out aten::bitwise_left_shift.Tensor_out
    aten::bitwise_or.Tensor_out aten::bitwise_right_shift.Tensor_out
    aten::bitwise_xor.Tensor_out aten::bmm.out aten::div.out aten::eq.Tensor_out
    aten::fill.Tensor_out aten::floor_divide.out aten::fmod.Tensor_out aten::ge.Tensor_out
    aten::gt.Tensor_out aten::le.Tensor_out aten::logical_and.out aten::logical_or.out
    aten::logical_xor.out aten::lt.Tensor_out aten::masked_select.out aten::maximum.out
    aten::minimum.out aten::mm.out aten::mul.out aten::ne.Tensor_out aten::pow.Tensor_Tensor_out
    aten::remainder.Tensor_out
TTbWr: aten::copy.out
TTfi?Wr: aten::_cdist_forward.out
TTibbWr: aten::embedding.out
TTii?i?iWr: aten::slice_scatter.out
TTiiWr: aten::select_scatter.out
TTiibWr: aten::grid_sampler_2d.out
TTnWr: aten::add.out aten::masked_fill.Scalar_out aten::sub.out
TTs?Wr: aten::div.out_mode
TWiTWr: llama::update_cache_with_indices.out
TWiWr: llama::update_cache.out
TWr: aten::_conj_physical.out aten::abs.out aten::acos.out aten::acosh.out aten::alias_copy.out
    aten::any.all_out aten::asin.out aten::asinh.out aten::atan.out aten::atanh.out
    aten::bitwise_not.out aten::ceil.out aten::cos.out aten::cosh.out aten::detach_copy.out
    aten::erf.out aten::exp.out aten::expm1.out aten::floor.out aten::isinf.out aten::isnan.out
    aten::lift_fresh_copy.out aten::log.out aten::log10.out aten::log1p.out aten::log2.out
    aten::logical_not.out aten::max.unary_out aten::min.unary_out aten::neg.out
    aten::nonzero.out aten::reciprocal.out aten::relu.out aten::round.out aten::rsqrt.out
    aten::sigmoid.out aten::sign.out aten::sin.out aten::sinh.out aten::sqrt.out
    aten::t_copy.out aten::tan.out aten::tanh.out aten::trunc.out aten::view_as_real_copy.out
    et_copy::_d2h_copy.out et_copy::_h2d_copy.out llama::fallback.out
    llama::fast_hadamard_transform.out
TbI?Wr: dim_order_ops::_clone_dim_order.out dim_order_ops::_to_dim_order_copy.out
Tbi?Wr: aten::_to_copy.out
Tf?Wr: aten::logit.out
TfWr: aten::_pdist_forward.out
Tfb?WWr: aten::native_dropout.out
TfiiiTfiiifiiiWr: quantized_decomposed::add.out
TfiiiiWr: quantized_decomposed::quantize_per_tensor.out
Tfiiiii?Wr: quantized_decomposed::dequantize_per_tensor.out
Ti?Wr: aten::clone.out aten::mean.dtype_out aten::prod.out aten::repeat_interleave.Tensor_out
Ti?bWr: aten::argmax.out aten::argmin.out
TiMr: aten::unbind_copy.int_out
TiTTWr: aten::scatter.src_out aten::scatter_add.out
TiTWr: aten::index_select.out
TiTbWr: aten::gather.out
TiTnWr: aten::scatter.value_out
TiWWr: quantized_decomposed::choose_qparams_per_token_asymmetric.out
TiWr: aten::glu.out aten::pixel_shuffle.out aten::pixel_unshuffle.out aten::squeeze_copy.dim_out
    aten::tril.out aten::unsqueeze_copy.out preprocess::tile_crop.out
TibWWr: aten::max.dim_max aten::min.dim_min
TibWr: aten::_log_softmax.out aten::_softmax.out aten::any.out
Tibi?Wr: aten::prod.int_out
Tii?Wr: aten::cumsum.out
Tii?i?iWr: aten::slice_copy.Tensor_out
TiiMr: aten::split_copy.Tensor_out
TiiWr: aten::select_copy.int_out aten::transpose_copy.int_out
TiibbWWr: aten::topk.values
TiifiWWr: quantized_decomposed::choose_qparams.Tensor_out
TiiiWr: aten::diagonal_copy.out aten::narrow_copy.out aten::unfold_copy.out
Tir: aten::sym_size.int
Tn?n?Wr: aten::clamp.out
TnWr: aten::bitwise_and.Scalar_out aten::bitwise_left_shift.Tensor_Scalar_out
    aten::bitwise_or.Scalar_out aten::bitwise_right_shift.Tensor_Scalar_out
    aten::bitwise_xor.Scalar_out aten::div.Scalar_out aten::eq.Scalar_out aten::fill.Scalar_out
    aten::fmod.Scalar_out aten::ge.Scalar_out aten::gt.Scalar_out aten::le.Scalar_out
    aten::leaky_relu.out aten::lt.Scalar_out aten::mul.Scalar_out aten::ne.Scalar_out
    aten::pow.Tensor_Scalar_out aten::remainder.Scalar_out
Tni?Wr: aten::full_like.out
TnnWr: aten::add.Scalar_out aten::hardtanh.out aten::rsub.Scalar_out aten::sub.Scalar_out
TnnnWr: aten::elu.out
Tns?Wr: aten::div.Scalar_mode_out
Tr: aten::_local_scalar_dense aten::sym_numel
TsWr: aten::gelu.out
WOTbr: aten::index_put_
WTbr: aten::copy_
WTi: executorch_prim::et_copy_index.tensor
iir: executorch_prim::mod.Scalar
nTWr: aten::pow.Scalar_out
nWr: aten::arange.out aten::scalar_tensor.out
nnnWr: aten::arange.start_out
nnnr: executorch_prim::sym_ite.Scalar
nnr: executorch_prim::add.Scalar executorch_prim::eq.Scalar executorch_prim::floordiv.Scalar
    executorch_prim::floordiv.int executorch_prim::ge.Scalar executorch_prim::gt.Scalar
    executorch_prim::le.Scalar executorch_prim::lt.Scalar executorch_prim::mod.int
    executorch_prim::mul.Scalar executorch_prim::sub.Scalar executorch_prim::sym_max.Scalar
    executorch_prim::sym_min.Scalar executorch_prim::truediv.Scalar
nr: executorch_prim::ceil.Scalar executorch_prim::neg.Scalar executorch_prim::round.Scalar
    executorch_prim::sym_float.Scalar executorch_prim::sym_int.Scalar
    executorch_prim::sym_not.Scalar executorch_prim::trunc.Scalar
"""
