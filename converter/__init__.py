"""Convert a gpt-oss checkpoint to a GGUF: command, options, sources, plan, estimate, manifest.

The path of a checkpoint, in the order to read it:

    cli, options     the command and what can be asked
    convert          the steps, one after the other
    source, load     where the checkpoint is; open it and check it
    expert_orientation   which expert matrices of a fine-tune are transposed
    plan             each tensor's name, type, shape, offset and transform; reads no weight
    dense_types      the type of each dense matrix
    output           a planned file and its tensors, for GGUF and safetensors alike
    manifest         the record of what was made from what
    estimate         ``--plan``: sizes and memory

    transforms       bytes of a checkpoint to bytes of a GGUF, and back
    gguf             header, metadata, vocabulary, split
    write            tasks, writer, staging
    hub              repositories on the Hub
    lora             adapters: opened, checked against the base, merged as they are read
    export           a GGUF to a checkpoint
    repair           a GGUF to one that llama.cpp runs; ``cli_gguf`` has the command for both

The files of ``gptoss`` that ``gate_up_proj_blocks`` passes on its way to the GGUF's bytes:

    formats/safetensors                  checks its entry in the header
    formats/other_tools                  gives it Hugging Face's name
    formats/checkpoint                   compares its dtype and shape with the config
    converter/plan                       selects the type and the transform of gate and of up
    converter/gguf/header                encodes their entries in the GGUF's table
    converter/write/tasks                reads, converts, hashes and writes it, chunk by chunk
    formats/byte_source                  reads bytes of the file
    converter/transforms/mxfp4_experts   takes every second row: gate's or up's
    quant/mxfp4/codec                    repacks Hugging Face's blocks as ggml's
"""
