"""What a notebook claims to have shown: asserted for the setting it was written for, only reported for any other."""


def check(claims: dict[str, bool], *, as_shipped: bool) -> None:
    """Say of every claim whether it holds.

    ``as_shipped``: model, text and level are those that the claims were written about. Then all must hold: raises
    AssertionError naming the others. Elsewhere they are questions, and a no is an answer.
    """
    if not as_shipped:
        print("Claims about the embedded model and the settings as they come. Do they hold here too?")
    for text, holds in claims.items():
        print(f"{'yes' if holds else 'no':3}  {text}")
    wrong = [text for text, holds in claims.items() if not holds]
    assert not wrong or not as_shipped, f"no longer true: {'; '.join(wrong)}"
