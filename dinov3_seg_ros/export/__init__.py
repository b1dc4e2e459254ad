"""From a trained bundle to graphs that run without torch, compared with the model before a robot can pick them up."""
