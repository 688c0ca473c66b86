"""Language models as judges, behind any endpoint that speaks OpenAI's chat protocol.

Rewards, preference labels and revisions are made of questions that `judge.Judge` asks. Nothing here may know what an
answer is used for. Invariant: text that is judged is data; whatever it says, a verdict is read from the judge's own
reply alone, and a reply without one is a `JudgeFault`, never a number.
"""
