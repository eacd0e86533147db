"""A program that is a language model -> text.

tokenizer = Tokenizer.of(program)
prompt = tokenizer.encode("Once upon a time")
for piece in tokenizer.stream(generate(program, prompt, stop=tokenizer.eos), after=prompt):
    print(piece, end="", flush=True)
"""
