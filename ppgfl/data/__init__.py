"""The contract of the data.

A *sample* is one image, a dict:

    im_id         int or str              image id of the annotation file, or the place in the list
    im_file       str                     path; absent for an image given as an array
    image         [H, W, 3] uint8         BGR before Decode, as everywhere in ppgfl; RGB after Decode and Resize, of
                                          float32, 0 to 255, after some augmentations; RGB [3, H, W] float32 after
                                          NormalizeImage and Permute
    im_shape      [2] float32             height, width of the image without padding
    scale_factor  [2] float32             that size / original size, height first
    h, w          int                     original size, after the rotation that EXIF asks for
    gt_bbox       [k, 4] float32          x1 y1 x2 y2 in pixels of `image` as it is now
    gt_class      [k] int64               class indices, 0 to C - 1
    is_crowd      [k] int64               1 for a crowd region
    gt_score      [k] float32             share of the image that a box is from, after Mixup and Cutmix
    resized       bool                    Resize was there (see `transforms.pixels_of`)
    curr_iter     int                     training: images of all epochs before

A *batch* is many, arrays with PaddleDetection's keys:

    image         [N, 3, H, W] float32    padded with zeros at the right and the bottom
    unpadded      [N, 2] int32            only where the image is uint8, on its way to a GPU (see `device`): height,
                                          width without padding
    im_shape      [N, 2] float32          as above
    scale_factor  [N, 2] float32
    im_id         [N] int64               the place instead, where the id is text or larger than that
    place         [N] int64               place in the list of records that the loader was made of
    labels        [N, A] int64            training: class of each cell, C for background
    label_weights [N, A] float32          1 for a cell that counts, else 0
    bbox_targets  [N, A, 4] float32       x1 y1 x2 y2 in pixels of the padded input, 0 for background
    pos_num       [N] int64               positive cells, at least 1

Dimension letters, here and everywhere: N images, L levels, A cells of all levels, K positive cells, C classes,
R = reg_max + 1, M detections. *Pixels of the original image*, *pixels of the padded input* and *cells* (units of a
level's stride) are the three frames of reference.
"""
