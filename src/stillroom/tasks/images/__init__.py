"""What every task on images stands on: folders, stores, transforms, annotations, batches, arguments of data."""
