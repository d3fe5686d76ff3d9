#include "model/norm.h"

#include "kernels/rms_norm.h"

namespace longhaul::model {

Norm::Norm(const ModelConfig& config, NormKind kind, const std::string& name, int64_t width,
           parallel::ParameterStore& store, int bucket)
    : eps_(config.norm_eps) {
  if (kind == NormKind::kSimple) return;
  weight_ = store.declare({.name = name,
                           .shape = {width},
                           .initializer = {.constant = 1.0},
                           .weight_decay = false,
                           .trained = config.trains_weights(),
                           .bucket = bucket});
}

void Norm::forward(const Context& ctx, ConstTensorView x, TensorView y, TensorView rstd) const {
  kernels::rms_norm_forward(ctx, {.x = x,
                                  .weight = weight_ ? weight_->use() : ConstTensorView(),
                                  .eps = eps_,
                                  .y = y,
                                  .rstd = rstd});
}

void Norm::backward(const Context& ctx, ConstTensorView dy, ConstTensorView x, ConstTensorView rstd,
                    TensorView dx) const {
  Arena::Scope scope(*ctx.scratch);
  kernels::rms_norm_backward(ctx,
                             {.dy = dy,
                              .x = x,
                              .weight = weight_ ? weight_->use() : ConstTensorView(),
                              .rstd = rstd,
                              .dx = dx,
                              .dweight = weight_ ? weight_->grad_or(*ctx.scratch) : TensorView()});
}

}  // namespace longhaul::model
