"""The tables of readouts and of calibrations."""

from fewtune.readout.calibration import Calibration, Contextual, Temperature, Uncalibrated
from fewtune.readout.channel import Channel
from fewtune.readout.cloze import Cloze
from fewtune.readout.generate import Generate
from fewtune.readout.head import Head
from fewtune.readout.likelihood import Likelihood
from fewtune.readout.pmi import PMI
from fewtune.readout.prior import PriorMatching
from fewtune.readout.readout import Readout
from fewtune.readout.similarity import Similarity
from fewtune.registry import Table

READOUTS: Table[Readout] = Table(
    "readout",
    {"cloze": Cloze, "likelihood": Likelihood, "channel": Channel, "head": Head, "similarity": Similarity, "generate": Generate},
)
CALIBRATIONS: Table[Calibration] = Table(
    "calibration", {"none": Uncalibrated, "contextual": Contextual, "pmi": PMI, "temperature": Temperature, "prior": PriorMatching}
)
