"""The FAISS index: chosen, trained, filled, tuned and measured."""
