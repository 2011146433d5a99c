"""The families of parameter-efficient fine-tuning behind one door: a file for each idea, a row of `table` for each."""
