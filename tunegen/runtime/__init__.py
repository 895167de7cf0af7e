"""What every emitted pack carries: this folder is copied into it as it stands.

It imports torch and triton only, and nothing of tunegen outside this folder. tunegen itself launches
its candidates through the same code, so what is tuned is what is shipped.
"""
