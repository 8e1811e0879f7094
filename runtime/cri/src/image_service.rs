//! CRI's ImageService over the image store. The store is blocking; every call runs on a blocking thread.

use std::sync::Arc;

use orlop_cri::v1;
use orlop_cri::v1::image_service_server::ImageService;
use orlop_images::{ImageError, ImageRecord, ImageStore};
use orlop_types::Reference;
use tokio_stream::Iter;
use tonic::{Request, Response, Status};

use crate::convert;
use crate::error::CriError;
use crate::runtime::Runtime;

type Listed<T> = Iter<std::vec::IntoIter<Result<T, Status>>>;

/// Images of one stream message.
const STREAM_BATCH: usize = 256;

/// The service.
pub(crate) struct ImageApi {
    runtime: Arc<Runtime>,
}

impl ImageApi {
    /// Over the shared state.
    pub(crate) fn new(runtime: Arc<Runtime>) -> Self {
        Self { runtime }
    }

    async fn ask<T: Send + 'static>(
        &self,
        what: &str,
        question: impl FnOnce(&ImageStore) -> Result<T, ImageError> + Send + 'static,
    ) -> Result<T, CriError> {
        let images = self.runtime.images.clone();
        match tokio::task::spawn_blocking(move || question(&images)).await {
            Ok(answer) => answer.map_err(|error| convert::image_error(what, &error)),
            Err(error) => Err(CriError::failed(format!("image {what}"), error)),
        }
    }

    async fn listed(&self, filter: Option<v1::ImageFilter>) -> Result<Vec<v1::Image>, CriError> {
        let wanted = filter.and_then(|filter| filter.image).map(|image| image.image).unwrap_or_default();
        let records: Vec<ImageRecord> = if wanted.is_empty() {
            self.ask("list", ImageStore::list).await?
        } else {
            let text = wanted.clone();
            self.ask(&wanted, move |images| images.find(&text)).await?.into_iter().collect()
        };
        Ok(records.iter().map(convert::image).collect())
    }
}

fn name(image: Option<v1::ImageSpec>) -> Result<String, CriError> {
    image
        .map(|image| image.image)
        .filter(|name| !name.is_empty())
        .ok_or_else(|| CriError::Invalid("no image named".to_owned()))
}

#[tonic::async_trait]
impl ImageService for ImageApi {
    type StreamImagesStream = Listed<v1::StreamImagesResponse>;

    async fn list_images(
        &self,
        request: Request<v1::ListImagesRequest>,
    ) -> Result<Response<v1::ListImagesResponse>, Status> {
        let images = self.listed(request.into_inner().filter).await?;
        Ok(Response::new(v1::ListImagesResponse { images }))
    }

    async fn stream_images(
        &self,
        request: Request<v1::StreamImagesRequest>,
    ) -> Result<Response<Self::StreamImagesStream>, Status> {
        let images = self.listed(request.into_inner().filter).await?;
        let batches: Vec<_> = images
            .chunks(STREAM_BATCH)
            .map(|batch| Ok(v1::StreamImagesResponse { images: batch.to_vec() }))
            .collect();
        Ok(Response::new(tokio_stream::iter(batches)))
    }

    async fn image_status(
        &self,
        request: Request<v1::ImageStatusRequest>,
    ) -> Result<Response<v1::ImageStatusResponse>, Status> {
        let request = request.into_inner();
        let wanted = name(request.image)?;
        let text = wanted.clone();
        // A name that is no reference at all is simply not there.
        let found = match self.ask(&wanted, move |images| images.find(&text)).await {
            Err(CriError::NoImage(_)) => None,
            other => other?,
        };
        let info = match &found {
            Some(record) if request.verbose => {
                let config = serde_json::to_string(record.config.as_ref()).unwrap_or_default();
                [("imageSpec".to_owned(), config)].into()
            }
            _ => std::collections::HashMap::new(),
        };
        Ok(Response::new(v1::ImageStatusResponse { image: found.as_ref().map(convert::image), info }))
    }

    async fn pull_image(
        &self,
        request: Request<v1::PullImageRequest>,
    ) -> Result<Response<v1::PullImageResponse>, Status> {
        let request = request.into_inner();
        let wanted = name(request.image)?;
        let reference = Reference::parse(&wanted).map_err(|error| {
            CriError::Invalid(format!("couldn't parse image reference {wanted:?}: {error}"))
        })?;
        let credential = request.auth.map(convert::credential).transpose()?.flatten();
        let runtime = self.runtime.clone();
        // Callers with different credentials do not share an answer.
        let key = format!(
            "{reference} {:?}",
            credential.as_ref().map(|credential| (
                &credential.username,
                &credential.password,
                &credential.registry_token,
                &credential.identity_token,
                &credential.server_address
            ))
        );
        let object = wanted.clone();
        let work = self.runtime.pulls.join(key, move || async move {
            let pulled = runtime.images.pull(&reference, credential).await;
            pulled.map(|record| record.id).map_err(|error| convert::image_error(&wanted, &error))
        });
        let image_ref = self.runtime.metrics.timed("PullImage", &object, work).await?;
        Ok(Response::new(v1::PullImageResponse { image_ref }))
    }

    async fn remove_image(
        &self,
        request: Request<v1::RemoveImageRequest>,
    ) -> Result<Response<v1::RemoveImageResponse>, Status> {
        let wanted = name(request.into_inner().image)?;
        let text = wanted.clone();
        // The call removes the image, by whatever name it is called (api.proto); the store alone takes one name of several.
        let work = self.ask(&wanted, move |images| match images.find(&text)? {
            Some(image) => images.remove(&image.id),
            None => Ok(()),
        });
        self.runtime.metrics.timed("RemoveImage", &wanted, work).await?;
        Ok(Response::new(v1::RemoveImageResponse {}))
    }

    async fn image_fs_info(
        &self,
        _request: Request<v1::ImageFsInfoRequest>,
    ) -> Result<Response<v1::ImageFsInfoResponse>, Status> {
        let usage = self.ask("usage", ImageStore::usage).await?;
        self.runtime.metrics.used_disk(usage.bytes);
        let usage = self.runtime.file_system(usage);
        Ok(Response::new(v1::ImageFsInfoResponse {
            image_filesystems: vec![usage.clone()],
            container_filesystems: vec![usage],
        }))
    }
}
