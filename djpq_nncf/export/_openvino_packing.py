# SPDX-License-Identifier: Apache-2.0
"""Stores weights of few bits in 4 or 2 bits instead of INT8."""

import numpy as np
import openvino as ov
import openvino.opset13 as ops


def pack_weights(model: ov.Model) -> None:
    """Replaces INT8 constants, in place, whose codes fit into fewer bits: the values stay the same.

    4 bits: -7 ... 7 as ``i4``. 2 bits: -1 ... 1 as ``u2`` with a zero point, for there is no signed type.
    """
    # else the CPU plugin quantizes the inputs of linear layers with packed weights anew, with steps of its own
    model.set_rt_info("0", ["runtime_options", "DYNAMIC_QUANTIZATION_GROUP_SIZE"])
    for node in model.get_ops():
        if node.get_type_name() != "Constant" or node.get_element_type() != ov.Type.i8:
            continue
        codes = node.data
        largest = np.abs(codes).max(initial=0)
        if largest > 7:
            continue
        zero_point = 1 if largest <= 1 else 0
        kind = ov.Type.u2 if zero_point else ov.Type.i4
        packed = ov.op.Constant(kind, node.output(0).get_shape(), (codes + zero_point).flatten().tolist())
        packed.set_friendly_name(node.get_friendly_name())
        for target in node.output(0).get_target_inputs():
            convert = target.get_node()
            target.replace_source_output(packed.output(0))
            if zero_point:
                readers = convert.output(0).get_target_inputs()
                shifted = ops.subtract(convert, np.float32(zero_point))
                for reader in readers:
                    reader.replace_source_output(shifted.output(0))
