"""CNN Demo: train VGG16 or ResNet50 on CIFAR-10, watch it learn, classify a picture with it."""
