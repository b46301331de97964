"""An audit of other people's mixers: which of the properties that a recurrence has they keep.

    from mixerzoo.equivalence.audit import audit, find
    for finding in audit(find("transformers")):
        print(finding.target, finding.property, finding.verdict, finding.difference)

`subject.py` says what can be audited, `properties/` what is asked of it, `targets/` how kernels, modules and
the models of libraries are called. Nothing here knows what the right answer is: a target is compared with
itself, called in another way.
"""

from .examine import Target, audit, examine
from .finding import AGREE, DISAGREE, PROPERTIES, UNSUPPORTED, Finding
from .subject import Case, Extreme, Inputs, Subject, Unsupported

__all__ = [
    "AGREE",
    "DISAGREE",
    "PROPERTIES",
    "UNSUPPORTED",
    "Case",
    "Extreme",
    "Finding",
    "Inputs",
    "Subject",
    "Target",
    "Unsupported",
    "audit",
    "examine",
]
