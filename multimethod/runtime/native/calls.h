// A call of a method, as Python makes it.
#pragma once

#include "bound.h"
#include "looks.h"
#include "method.h"

namespace mmpack {

/// known(inputs) -> bool: whether the tuple or list `inputs` looks like some that were remembered.
PyObject* known(Looks& looks, Arguments arguments);

/// remember(inputs)
PyObject* remember(Looks& looks, Arguments arguments);

/// run(inputs, out=None) -> list of outputs: the tuple or list `inputs` in call order; `out`, one
/// of the caller's tensors or None for each output. Without the GIL meanwhile.
PyObject* run(Method& method, Arguments arguments);

}  // namespace mmpack
