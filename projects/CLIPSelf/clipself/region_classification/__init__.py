"""How well features of regions name them (mAcc): boxes, masks and, as the ceiling, image crops."""
