"""The contenders of `meta_step.py`: one meta-step, written as the users of each library write it.

========================  ==============================================================
`contenders.workload`     what is computed: sizes, task tensors and the model everyone shares
`contenders.plain`        plain autograd over a Hugging Face model, the reference
`contenders.peers`        higher, iteryne, torchopt, parallel-metalearn
`contenders.ours`         kshot
`contenders.registry`     all of them by name
`contenders.measuring`    interleaved timing, errors, peak memory in a fresh process
`contenders.arithmetic`   how many useful operations a step has, and the machine's peak
`contenders.report`       rows and the table for the README
========================  ==============================================================
"""
