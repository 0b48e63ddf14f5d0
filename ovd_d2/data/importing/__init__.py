"""Data sets of other formats, as COCO-format JSONs and the yaml file that names them.

A module per format turns files into :class:`~ovd_d2.data.importing.found.FoundSet`; what follows is
the same for all of them: images are looked at, boxes checked, and what is left out is accounted
for. supervision's `DetectionDataset` reads some of these formats too, but turns polygons into
masks, decodes every image to do so and passes over label files without an image.
"""
