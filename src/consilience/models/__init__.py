"""Shape and classes to modules that give logits."""
