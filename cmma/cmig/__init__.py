"""The Cross-Modal Interaction Graph: pairwise effects, their tests, and the numbers of the network.

    selection → ablation (model) → effects (Eq. 7, excess) → inference (permutations, BH) → graph, network
"""
