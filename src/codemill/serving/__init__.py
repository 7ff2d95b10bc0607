"""Where people use a model: an OpenAI-compatible server that also speaks llama.cpp's `/infill`."""
