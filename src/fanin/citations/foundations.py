"""The publications behind schemes, gains and the textbook recipes."""

from __future__ import annotations

from fanin.citations.record import Source

FOUNDATIONS = (
    Source(
        "lecun1998",
        "LeCun, Yann and Bottou, Léon and Orr, Genevieve B. and Müller, Klaus-Robert",
        "Efficient BackProp",
        "Neural Networks: Tricks of the Trade",
        1998,
    ),
    Source(
        "glorot2010",
        "Glorot, Xavier and Bengio, Yoshua",
        "Understanding the difficulty of training deep feedforward neural networks",
        "AISTATS",
        2010,
    ),
    Source(
        "martens2010",
        "Martens, James",
        "Deep learning via Hessian-free optimization",
        "ICML",
        2010,
    ),
    Source(
        "saxe2014",
        "Saxe, Andrew M. and McClelland, James L. and Ganguli, Surya",
        "Exact solutions to the nonlinear dynamics of learning in deep linear neural networks",
        "ICLR",
        2014,
        "1312.6120",
    ),
    Source(
        "he2015",
        "He, Kaiming and Zhang, Xiangyu and Ren, Shaoqing and Sun, Jian",
        "Delving deep into rectifiers: Surpassing human-level performance on ImageNet classification",
        "ICCV",
        2015,
        "1502.01852",
    ),
    Source(
        "le2015",
        "Le, Quoc V. and Jaitly, Navdeep and Hinton, Geoffrey E.",
        "A simple way to initialize recurrent networks of rectified linear units",
        "arXiv",
        2015,
        "1504.00941",
    ),
    Source(
        "jozefowicz2015",
        "Jozefowicz, Rafal and Zaremba, Wojciech and Sutskever, Ilya",
        "An empirical exploration of recurrent network architectures",
        "ICML",
        2015,
    ),
    Source(
        "zagoruyko2017",
        "Zagoruyko, Sergey and Komodakis, Nikos",
        "DiracNets: Training very deep neural networks without skip-connections",
        "arXiv",
        2017,
        "1706.00388",
    ),
    Source(
        "xiao2018",
        "Xiao, Lechao and Bahri, Yasaman and Sohl-Dickstein, Jascha and Schoenholz, Samuel S. and Pennington, Jeffrey",
        "Dynamical isometry and a mean field theory of CNNs: How to train 10,000-layer vanilla convolutional "
        "neural networks",
        "ICML",
        2018,
        "1806.05393",
    ),
    Source(
        "balduzzi2017",
        "Balduzzi, David and Frean, Marcus and Leary, Lennox and Lewis, JP and Ma, Kurt Wan-Duo and McWilliams, Brian",
        "The shattered gradients problem: If resnets are the answer, then what is the question?",
        "ICML",
        2017,
        "1702.08591",
    ),
    Source(
        "martens2021",
        "Martens, James and Ballard, Andy and Desjardins, Guillaume and Swirszcz, Grzegorz and "
        "Dalibard, Valentin and Sohl-Dickstein, Jascha and Schoenholz, Samuel S.",
        "Rapid training of deep neural networks without skip connections or normalization layers using deep "
        "kernel shaping",
        "arXiv",
        2021,
        "2110.01765",
    ),
    Source(
        "pytorch",
        "Paszke, Adam and others",
        "PyTorch: An imperative style, high-performance deep learning library",
        "NeurIPS",
        2019,
        "1912.01703",
    ),
)
