"""OpenVLA: two vision transformers, a projector and Llama-2, composed natively; 256 action tokens."""
