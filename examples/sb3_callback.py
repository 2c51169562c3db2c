"""Stable-Baselines3: probes and ReDo as one callback; the logger gets the numbers.

pip install ".[sb3]" && python examples/sb3_callback.py [steps]
"""

import sys

from stable_baselines3 import SAC

from plasticity.interventions import ReDo
from plasticity.sb3 import PlasticityCallback

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 2_000
agent = SAC("MlpPolicy", "Pendulum-v1", learning_starts=100, device="cpu")
callback = PlasticityCallback(every=20, interventions=[ReDo(every=100)])
agent.learn(steps, callback=callback)
for network, reading in callback.last.items():
    print(f"{network}\n{reading}\n")
