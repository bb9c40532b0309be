"""Fine-tuning in OpenAI's shape, over files of purpose `fine-tune`.

shapes.py    the bodies of requests
ordering.py  from a body to what is ordered: model, head, …
starts.py    what training begins with
publishing.py  … and what becomes of what is learnt
routes.py    the endpoints
checker.py   looking through the files of jobs before a worker may have them
"""
