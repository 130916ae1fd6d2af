"""FlowCut's algorithm and the arithmetic of cutting, as pure functions on tensors; no model in sight."""
